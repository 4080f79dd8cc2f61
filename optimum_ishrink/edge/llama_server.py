"""llama.cpp in this process: the server that `xllamacpp` ships prebuilt, called without its network interface."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import RequestError, SourceError

INSTALL = "pip install 'optimum-ishrink[edge]'"
"""The command that installs what this package needs."""

_GREEDY = {"temperature": 0, "samplers": ["top_k"], "top_k": 1}
_ERRORS_ONLY = 2
"""A level of `verbosity`."""

_NEVER_CLOSED: list[Any] = []
"""Servers of this process. Closing one can hang when its loop does not run yet."""


def check_runtime() -> None:
    """Check that llama.cpp is installed.

    Raises:
        RequestError: It is not; the message has the command that installs it.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise RequestError(f"llama.cpp comes with the package xllamacpp, which is not installed: {INSTALL}")


def build_name() -> str:
    """Return the version of llama.cpp and the processor instructions that it uses."""
    import xllamacpp

    flags = xllamacpp.get_system_info().split(":", 1)[-1].split("|")
    used = [name.strip() for flag in flags if (name := flag.partition("=")[0]) and flag.strip().endswith("= 1")]
    return f"xllamacpp {xllamacpp.__version__} ({', '.join(used)})"


def default_threads() -> int:
    """Return the number of cores that this process may use, at most the physical ones: more threads only wait."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


@dataclass(frozen=True)
class Answer:
    """Timings of one request.

    Args:
        seconds: Time from the request to its answer.
        decoded: Tokens after the first.
        decode_seconds: Time for these.
    """

    seconds: float
    decoded: int
    decode_seconds: float


@dataclass(frozen=True)
class Output:
    """What was written after a prompt.

    Args:
        tokens: Its tokens.
        seconds: Time for these, without the prompt's.
        prompt_seconds: Time of the pass over the prompt's tokens that were not in the KV cache.
        drafted: Tokens that a draft proposed.
        accepted: Those that were accepted.
    """

    tokens: tuple[int, ...]
    seconds: float
    prompt_seconds: float
    drafted: int
    accepted: int


class LlamaServer:
    """One GGUF file loaded in llama.cpp.

    It writes errors to standard error. Use it in a process that exits without closing it (see `worker.py`).

    Args:
        path: The file.
        threads: Threads to compute with.
        context: Context size in tokens, for prompt and answer together.
        draft: Another file that drafts for this one; None for none.
        draft_tokens: Tokens that it drafts in a round, at most.
        draft_threshold: Probability below which a token is not drafted; 0 for never.

    Raises:
        RequestError: `xllamacpp` is not installed.
        SourceError: llama.cpp cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        context: int,
        draft: Path | None = None,
        draft_tokens: int = 4,
        draft_threshold: float = 0.0,
    ) -> None:
        check_runtime()
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = context
        settings.n_parallel = 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.n_gpu_layers = 0
        settings.fit_params = False  # it would load the model twice to check the memory
        settings.warmup = False  # a warm-up generates tokens, which is not part of loading
        settings.ui = False
        settings.verbosity = _ERRORS_ONLY
        if draft is not None:
            settings.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
            drafting = settings.speculative.draft
            drafting.mparams.path = str(draft)
            drafting.n_max, drafting.n_min, drafting.p_min = draft_tokens, 0, draft_threshold
            drafting.cpuparams.n_threads = drafting.cpuparams_batch.n_threads = threads
            drafting.n_gpu_layers = 0
        start = time.perf_counter()
        try:
            self._server = xllamacpp.Server(settings)
        except RuntimeError:
            names = f"{path}" if draft is None else f"{path} with the draft {draft}"
            raise SourceError(f"llama.cpp cannot load {names}") from None
        _NEVER_CLOSED.append(self._server)
        self.load_seconds = time.perf_counter() - start

    def complete(self, tokens: Sequence[int], count: int, *, reuse: bool) -> Answer:
        """Decode greedily after a prompt.

        Args:
            tokens: The prompt's token ids.
            count: Tokens to decode, including the first; an end-of-text token does not stop it.
            reuse: Reuse the KV cache of the previous request for the same prompt.
        """
        request = {"prompt": list(tokens), "n_predict": count, "ignore_eos": True, "cache_prompt": reuse, **_GREEDY}
        start = time.perf_counter()
        reply = self._ask(request)
        seconds = time.perf_counter() - start
        timings = reply["timings"]
        return Answer(seconds, timings["predicted_n"] - 1, timings["predicted_ms"] / 1000)

    def write(self, tokens: Sequence[int], count: int, *, reuse: bool = False) -> Output:
        """Decode greedily after a prompt, and return the tokens; an end-of-text token stops it.

        Args:
            tokens: The prompt's token ids.
            count: Tokens to decode, at most.
            reuse: Reuse the KV cache of the previous request as far as its prompt is the same.
        """
        request = {"prompt": list(tokens), "n_predict": count, "cache_prompt": reuse, "return_tokens": True, **_GREEDY}
        reply = self._post("completion", request)
        timings = reply["timings"]
        return Output(
            tokens=tuple(reply["tokens"]),
            seconds=timings["predicted_ms"] / 1000,
            prompt_seconds=timings["prompt_ms"] / 1000,
            drafted=timings.get("draft_n", 0),
            accepted=timings.get("draft_n_accepted", 0),
        )

    def next_log_probabilities(self, tokens: Sequence[int], count: int) -> list[tuple[int, float]]:
        """Return the most likely next tokens with their natural log-probabilities over the whole vocabulary.

        Args:
            tokens: The token ids so far. A prefix shared with the previous request is not computed again.
            count: How many.
        """
        # An answer without text (end of text, or half of a character) comes without probabilities. So a bias makes the
        # answer always the same plain token; it does not change the probabilities, which are from before sampling.
        request = {"prompt": list(tokens), "n_predict": 1, "n_probs": count, "cache_prompt": True, **_GREEDY}
        request |= {"ignore_eos": True, "logit_bias": [[self._plain_token, 1e4]]}
        (position,) = self._ask(request)["choices"][0]["logprobs"]["content"][:1]
        # llama.cpp writes the lowest float for the logarithm of zero.
        return [(entry["id"], max(entry["logprob"], -math.inf)) for entry in position["top_logprobs"]]

    @cached_property
    def _plain_token(self) -> int:
        return self.tokenize("a")[-1]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = self._server.handle_completions(request)
        if "error" in reply:
            raise SourceError(f"llama.cpp refuses the request: {reply['error'].get('message', reply['error'])}")
        return reply

    def tokenize(self, text: str) -> list[int]:
        """Return a text's token ids, without special tokens."""
        found: list[int] = self._post(
            "tokenize", {"content": text, "add_special": False, "parse_special": False}, limit=60
        )["tokens"]
        return found

    def _post(self, path: str, contents: dict[str, Any], *, limit: float = 1800) -> dict[str, Any]:
        """Return the answer of one of the server's addresses, within a limit in seconds."""
        request = urllib.request.Request(
            f"{self._server.listening_address}/{path}",
            json.dumps(contents).encode(),
            {"Content-Type": "application/json"},
        )
        # The server is in this process: ignore the proxies that the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=limit) as answer:
            found: dict[str, Any] = json.load(answer)
        return found
