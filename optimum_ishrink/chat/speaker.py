"""A model that answers: its chat template, its generation config, and a key-value cache that outlasts a turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import DynamicCache

from ..core.finite import check_predictions
from ..core.key_value_cache import cache_name, has_state, keeps_cache, own_cache
from ..core.limits import check_tokens, max_positions
from ..errors import DataError, RequestError
from ..evaluation.samples import end_tokens, has_template
from ..text.conversations import read_conversation
from .answer import Answer
from .options import NEW_TOKENS, ChatOptions
from .streaming import TokenClock

Message = Mapping[str, str]
"""`role` and `content`."""

_WARM_UP_PROMPT, _WARM_UP_TOKENS = "Hello, how are you?", 4

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")
"""What a generation config says about sampling; greedy decoding reads none of it."""

_UNSAID: Mapping[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""What `generate` samples with where a generation config says nothing; given to it, so that records are true."""

_SHOWN = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")
"""What a record of a conversation says about generation."""

_ONE_ANSWER: Mapping[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "max_length": None,
    "min_new_tokens": None,
    "max_time": None,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
    "return_dict_in_generate": False,
}
"""What a stream needs, whatever the generation config says."""


class Speaker:
    """A model that answers, one conversation at a time.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        name: Its name in messages.
        reuse: Whether the key-value cache of a turn serves the next one.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, *, reuse: bool = True) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self._reuse = reuse
        self._warm = False
        self._cache: Any = None
        self._cached: list[int] = []

    @property
    def has_template(self) -> bool:
        """Whether it has a chat template; without one, a prompt is completed as plain text."""
        return has_template(self.tokenizer)

    @property
    def positions(self) -> int | None:
        """How many tokens it can read, or None where its config does not say."""
        return max_positions(self.model.config)

    @cached_property
    def _ends(self) -> list[int]:
        return sorted(end_tokens(self.model, self.tokenizer))

    @cached_property
    def _own_cache(self) -> type[Any] | None:
        """The kind of cache that the model makes itself, where its class takes no other."""
        return own_cache(self.model)

    def _new_cache(self) -> Any:
        """Return an empty cache; None where the model's class keeps none, and reads the whole text for every token."""
        if not keeps_cache(self.model):
            return None
        return DynamicCache(config=self.model.config) if self._own_cache is None else self._own_cache()

    def read(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins.

        Args:
            messages: The conversation; without a chat template the last message alone is read.

        Raises:
            RequestError: There is no room for an answer, a system prompt has no place, the chat template refuses the
                messages, or the model has no embedding for a token.
        """
        ids = self._tokens(messages)
        limit = self.positions
        if limit is not None and len(ids) >= limit:
            raise RequestError(
                f"the conversation has {len(ids):,} tokens with this prompt, and {self.name} reads and writes at most "
                f"{limit:,} in all; ask for less, or begin a new conversation (/clear)"
            )
        return ids

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        if self.has_template:
            try:
                text = read_conversation(messages, "messages", {}).written(self.tokenizer, messages, prompt=True)
            except DataError as error:
                raise DataError(f"what {self.name} is to read {error}") from None
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            if messages[0]["role"] == "system":
                raise RequestError(
                    f"{self.name} has no chat template, so that a system prompt has no place; leave it out"
                )
            ids = list(self.tokenizer(messages[-1]["content"])["input_ids"])
        if not ids:
            raise DataError(f"the prompt has no tokens for {self.name}; write a text")
        rows = self.model.get_input_embeddings().weight.shape[0]
        check_tokens(ids, rows, self.tokenizer, "the conversation", self.name)
        return ids

    def warm_up(self) -> None:
        """Read and write a few tokens, which count nowhere: the first steps of a process are slower than all others.

        Raises:
            NotFiniteError: The model gives NaN or infinite values.
        """
        self._warm = True
        ids = self._tokens([{"role": "user", "content": _WARM_UP_PROMPT}])
        if self.positions is not None:
            ids = ids[: max(self.positions - _WARM_UP_TOKENS, 1)]
        check_predictions(self.model, torch.tensor([ids]), self.name, "a first prompt")
        settings = self._settings(ChatOptions(greedy=True), _WARM_UP_TOKENS)
        self._generate(ids, {**settings, "eos_token_id": None}, self._new_cache())

    def settings(self, options: ChatOptions) -> dict[str, Any]:
        """Return how it generates: the model's generation config, with what the options override.

        Args:
            options: The options.
        """
        changes = self._settings(options, options.max_new_tokens or self._longest)
        config = self.model.generation_config
        found = {name: changes.get(name, getattr(config, name, None)) for name in (*_SHOWN, "max_new_tokens")}
        found["do_sample"] = bool(found["do_sample"])
        unread = () if found["do_sample"] else _SAMPLING
        return {name: value for name, value in found.items() if value is not None and name not in unread}

    @property
    def _longest(self) -> int:
        return getattr(self.model.generation_config, "max_new_tokens", None) or NEW_TOKENS

    def _settings(self, options: ChatOptions, new_tokens: int) -> dict[str, Any]:
        """Return what `generate` is given beyond the model's generation config."""
        found: dict[str, Any] = {**_ONE_ANSWER, "max_new_tokens": new_tokens, "eos_token_id": self._ends or None}
        found["pad_token_id"] = self._ends[0] if self._ends else 0
        if options.is_greedy is not None:
            found["do_sample"] = not options.is_greedy
            if not options.is_greedy:
                found["temperature"] = float(options.temperature or 1)
        config = self.model.generation_config
        if not found.get("do_sample", config.do_sample):
            return {**found, **dict.fromkeys(_SAMPLING)}
        return {**{name: value for name, value in _UNSAID.items() if getattr(config, name, None) is None}, **found}

    def answer(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        *,
        seed: int = 0,
        on_text: Callable[[str], None] = lambda piece: None,
        stoppable: bool = False,
    ) -> Answer:
        """Answer a conversation.

        Args:
            messages: The conversation, its last message the user's.
            options: How to generate.
            seed: Seed of the sampling.
            on_text: Called with each piece of the answer as it comes.
            stoppable: Whether Ctrl-C ends the answer, which is returned as it is by then, instead of raising.

        Raises:
            RequestError: The conversation cannot be answered; see `read`.
        """
        if not self._warm:
            self.warm_up()
        started = time.perf_counter()
        ids = self.read(messages)
        wanted = options.max_new_tokens or self._longest
        room = wanted if self.positions is None else min(self.positions - len(ids), wanted)
        cache, cached = self._take_cache(ids)
        clock = TokenClock(self.tokenizer, on_text)
        stopped = False
        try:
            self._generate(ids, self._settings(options, room), cache, clock, seed)
            self._keep_cache(cache, ids + clock.tokens)
        except KeyboardInterrupt:  # some layers may have read a token that others have not: their cache is dropped
            if not stoppable:
                raise
            stopped = True
            clock.end()
        finished = time.perf_counter()
        count, times = len(clock.tokens), clock.times
        cut_off = count == room and clock.tokens[-1] not in self._ends
        return Answer(
            text=clock.text,
            tokens=count,
            prompt_tokens=len(ids),
            cached_tokens=cached,
            first_token_seconds=times[0] - started if times else None,
            decode_tokens_per_second=(count - 1) / (times[-1] - times[0]) if count > 1 else None,
            total_seconds=finished - started,
            ended="user" if stopped else "length" if cut_off else "stop",
        )

    def _generate(
        self, ids: Sequence[int], settings: Mapping[str, Any], cache: Any, clock: Any = None, seed: int = 0
    ) -> None:
        device = self.model.device
        prompt = torch.tensor([list(ids)], device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                streamer=clock,
                tokenizer=self.tokenizer,  # for a generation config with texts to stop at
                use_cache=cache is not None,
                **({} if cache is None else {cache_name(self.model): cache}),
                **settings,
            )

    def _take_cache(self, ids: Sequence[int]) -> tuple[Any, int]:
        """Return the cache of the turn before, cut to what it shares with a prompt, or a new one; and its tokens.

        At least one token is left to read: a model has to run to say what comes next.
        """
        cache, cached = self._cache, self._cached
        self._cache, self._cached = None, []
        shared = 0
        for before, now in zip(cached, ids[:-1], strict=False):
            if before != now:
                break
            shared += 1
        if cache is not None and shared and not has_state(cache):
            try:
                if shared < len(cached):
                    cache.crop(shared - len(cached))
                if cache.get_seq_length() == shared:
                    return cache, shared
            except (RuntimeError, ValueError, NotImplementedError, AttributeError):
                pass  # a layer with a sliding window has forgotten what it would have to go back to
        return self._new_cache(), 0

    def _keep_cache(self, cache: Any, tokens: list[int]) -> None:
        """Keep a cache for the next turn; the last token was written and not read."""
        length = 0 if cache is None else cache.get_seq_length()
        if self._reuse and 0 < length <= len(tokens):
            self._cache, self._cached = cache, tokens[:length]

    def forget(self) -> None:
        """Drop the cache of the conversation."""
        self._cache, self._cached = None, []
