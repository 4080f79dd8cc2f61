"""Drafts in llama.cpp: GGUF files of the base and the drafts, timed in fresh processes."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..core.progress import progress_bar
from ..edge.gguf_export import check_runs
from ..edge.gguf_quantizations import GgufQuantization, parse_gguf_quantization
from ..edge.gguf_tokenizer import find_gguf_tokenizer
from ..edge.llama_server import check_runtime, default_threads
from ..edge.options import BENCHMARK_QUANTIZATION
from ..edge.row_fallbacks import check_rows
from ..edge.worker_process import MARGIN, Process, Start, WorkerProcess
from ..edge.write_gguf import write_gguf
from ..errors import DataError
from ..report.draft import Divergent, DraftTiming
from .assisted import Written
from .formula import NO_ROUNDS, Policy, Rounds, StepCosts
from .options import DRAFT_QUANTIZATION, DraftOptions
from .own_text import Choices, OwnText
from .shapes_tried import Candidate
from .step_cost import PASS_LENGTHS
from .together import BASE, decode_in_turn, first_difference, timings

_TURNS = 5
"""Turns of the base and a draft, each alone, whose speeds give the cost of a step."""


class OnLlamaCpp:
    """llama.cpp runs the base and its drafts.

    Args:
        session: The run over the base.
        options: Quantisations, threads, and what is measured.
        folder: Where files are written.
        start: Starts a process of `edge.worker`.
    """

    def __init__(self, session: Session, options: DraftOptions, folder: Path, *, start: Start = WorkerProcess) -> None:
        check_runtime()
        self.session = session
        self.options = options
        self.folder = folder
        self.build = ""
        self._start = start
        self._threads = options.threads or default_threads()
        self._base = parse_gguf_quantization(options.quantization or BENCHMARK_QUANTIZATION)
        self._draft = parse_gguf_quantization(options.draft_quantization or DRAFT_QUANTIZATION)
        self.base_type, self.draft_type = self._base.name, self._draft.name
        self._files: dict[tuple[Path, str], Path] = {}
        for quantization in (self._base, self._draft):
            check_rows(session.source.binding, quantization)
        check_runs(session.source)

    @classmethod
    @contextmanager
    def opened(cls, session: Session, options: DraftOptions) -> Iterator[OnLlamaCpp]:
        """Yield the runtime; its files are removed at the end.

        Args:
            session: The run over the base.
            options: Quantisations, threads, and what is measured.

        Raises:
            RequestError: llama.cpp is not installed, or does not run the model.
        """
        with tempfile.TemporaryDirectory(prefix="ishrink-draft-") as folder:
            yield cls(session, options, Path(folder))

    def texts(self, prompts: torch.Tensor) -> list[OwnText]:
        """Return what the base's file writes after prompts by greedy decoding.

        Args:
            prompts: Token ids, shape (prompts, length).

        Raises:
            DataError: It ends the text at once after every prompt.
        """
        found = []
        with self._process(None, None) as base:
            for row in prompts:
                answer = base.ask({"prompt": row.tolist(), "count": self.options.new_tokens})
                tokens = tuple(answer["tokens"])
                if len(tokens) > 1:
                    alone = Rounds(len(tokens), len(tokens), 0, 0)
                    found.append(OwnText(row[None], Written(tokens, alone, len(tokens), answer["seconds"])))
        if not found:
            raise DataError("the model ends its text at once after every prompt; give other --draft-text")
        return found

    def expected(self, candidate: Candidate, texts: Sequence[OwnText]) -> tuple[list[Choices], StepCosts]:
        """Return where a draft's file would choose what the base's wrote, and what a round costs.

        Args:
            candidate: The draft.
            texts: What the base wrote.
        """
        return [self._choices(candidate, text) for text in texts], self._costs(candidate, texts)

    def _choices(self, candidate: Candidate, text: OwnText) -> Choices:
        assert candidate.source is not None, "llama.cpp has no early exit"
        own = text.written.tokens
        request = {
            "task": "predict",
            "model": str(self._file(candidate.source, self._draft)),
            "threads": self._threads,
            "windows": [[*text.prompt[0].tolist(), *own[:-1]]],
            "predicted": len(own),
            "candidates": 1,
            "lines": [],
        }
        with self._start(request) as process:
            (top,) = process.first["top"]
        first = [position[0] for position in top]
        return Choices(
            tuple(token == wanted for (token, _), wanted in zip(first, own, strict=True)),
            tuple(math.exp(log) for _, log in first),
        )

    def _file(self, source: Source, quantization: GgufQuantization) -> Path:
        """Return a checkpoint's file, written when it is first needed."""
        key = (source.folder, quantization.name)
        if key not in self._files:
            check_rows(source.binding, quantization)
            check_runs(source)
            path = self.folder / f"{len(self._files)}.gguf"
            tokenizer = find_gguf_tokenizer(source.folder, source.load_tokenizer())
            write_gguf(source.folder, quantization, path, name=source.display_name, tokenizer=tokenizer)
            self._files[key] = path
        return self._files[key]

    def _process(self, draft: Candidate | None, policy: Policy | None, *, of: Path | None = None) -> Any:
        """Return a process of the base, alone or with a draft, or of another file alone."""
        request: dict[str, Any] = {
            "task": "speculate",
            "model": str(of or self._file(self.session.source, self._base)),
            "threads": self._threads,
            "context": self.options.prompt_length + self.options.new_tokens + MARGIN,
        }
        if draft is not None and policy is not None:
            assert draft.source is not None, "llama.cpp has no early exit"
            request["draft"] = str(self._file(draft.source, self._draft))
            request |= {"draft_tokens": policy.length, "draft_threshold": policy.threshold}
        return self._start(request)

    def _costs(self, candidate: Candidate, texts: Sequence[OwnText]) -> StepCosts:
        """Return what a step of a draft costs, from the decode speeds of both alone, in turn, and what passes do.

        A pass of the base over several tokens is timed as what it takes to read them after a prompt.
        """
        assert candidate.source is not None, "llama.cpp has no early exit"
        prompt = texts[0].prompt[0].tolist()
        passes: dict[int, list[float]] = {count: [] for count in PASS_LENGTHS if count < len(prompt)}
        seconds: dict[str, list[float]] = {"base": [], "draft": []}
        with (
            self._process(None, None) as base,
            self._process(None, None, of=self._file(candidate.source, self._draft)) as draft,
            progress_bar("timing steps in turn", _TURNS) as advance,
        ):
            for _ in range(_TURNS):
                for name, process in (("base", base), ("draft", draft)):
                    found = process.ask({"prompt": prompt, "count": 16})
                    seconds[name].append(found["seconds"] / max(1, len(found["tokens"])))
                for count, times in passes.items():
                    base.ask({"prompt": prompt[:-count], "count": 1})
                    times.append(base.ask({"prompt": prompt, "count": 1, "reuse": True})["prompt_seconds"])
                advance(1)
        middle = {count: median(times) for count, times in passes.items()}
        # A step decides the unit: of draft and base alike it is what decoding takes, so passes are relative to one.
        return StepCosts(
            median(seconds["draft"]) / median(seconds["base"]),
            {count: value / middle[1] for count, value in middle.items()},
        )

    def together(
        self, chosen: Sequence[tuple[Candidate, Policy]], texts: Sequence[OwnText]
    ) -> Mapping[str, DraftTiming]:
        """Return what is measured of drafts and their base together.

        Args:
            chosen: The drafts, each with how long it proposes.
            texts: What the base wrote alone.

        Raises:
            DataError: The base writes too few tokens to time them.
        """
        prompts = [text.prompt[0].tolist() for text in texts]
        with ExitStack() as stack:
            processes: dict[str, Process] = {BASE: stack.enter_context(self._process(None, None))}
            for candidate, policy in chosen:
                processes[candidate.name] = stack.enter_context(self._process(candidate, policy))
            self.build = processes[BASE].first["build"]
            ask = self._asking(processes, prompts)
            own = [list(text.written.tokens) for text in texts]
            counted: dict[str, Rounds] = {}
            divergent: dict[str, list[Divergent]] = {}
            for name in list(processes)[1:]:
                counted[name], divergent[name] = NO_ROUNDS, []
                for number, tokens in enumerate(own):
                    found = ask(name, number)
                    count = len(found["tokens"])
                    accepted = min(found["accepted"], count)
                    counted[name] += Rounds(count, max(1, count - accepted), found["drafted"], accepted)
                    if found["tokens"] != tokens:
                        divergent[name].append(Divergent(number, first_difference(tokens, found["tokens"]), None))
            timed = [number for number, tokens in enumerate(own) if len(tokens) > 2]
            if not timed:
                raise DataError("the base writes too few tokens after every prompt to time them; give other text")

            def rate(name: str, number: int) -> float:
                found = ask(name, timed[number])
                return len(found["tokens"]) / float(found["seconds"])

            rates = decode_in_turn(list(processes), len(timed), self.options.rounds, rate)
        return timings(rates, counted, divergent, len(texts))

    def _asking(
        self, processes: Mapping[str, Process], prompts: Sequence[Sequence[int]]
    ) -> Callable[[str, int], dict[str, Any]]:
        def ask(name: str, number: int) -> dict[str, Any]:
            return processes[name].ask({"prompt": prompts[number], "count": self.options.new_tokens})

        return ask

    def write(self, candidate: Candidate, folder: Path) -> None:
        """Write the draft's file beside its checkpoint.

        Args:
            candidate: The draft.
            folder: The output folder.
        """
        if candidate.made and candidate.source is not None:
            name = f"{candidate.source.folder.name}-{self._draft.name}.gguf"
            tokenizer = find_gguf_tokenizer(candidate.source.folder, candidate.source.load_tokenizer())
            write_gguf(candidate.source.folder, self._draft, folder / name, name=candidate.name, tokenizer=tokenizer)
