"""lm-eval's log-likelihood requests, with every context run once.

The choices of a question share its context. lm-eval runs it again for every choice, and computes logits over the
whole vocabulary at every position. Here the KV cache of a context serves all of its continuations, and only the
positions that predict them have logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from ..core.finite import kind_of
from ..core.key_value_cache import cache_name, has_state
from ..core.limits import check_tokens
from ..core.micro_batch import MicroBatch
from ..core.progress import progress_bar
from ..errors import NotFiniteError
from ..modeling.base import base_of
from ..modeling.head import Head

WINDOW = 512
"""Tokens per window: `batch_size` windows of this length bound the tokens in a batch, whatever a request's
length."""

_CACHED = 8
"""Cached tokens allowed per token of a batch: continuations are short, and otherwise few of them would run at once."""

_MOST = 256
"""Windows at once at most, however much memory there is: more make a GPU no faster."""

_REMEDY = "evaluate without the tasks of the longest questions, or on the CPU (--device cpu)"

_SPREAD = 6
"""Tokens by which contexts of a batch may differ in length: the excess is read once per continuation."""

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""lm-eval's key of the request, tokens of the context, and tokens of the continuation."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether greedy decoding would give it."""


class SharedContextLM(HFLM):  # type: ignore[misc]
    """A loaded model for lm-eval that reads a context once for all continuations.

    Answers are those of `HFLM` with `softmax_dtype=float32`, but for the order in which floating-point numbers are
    added.

    Args:
        model: The causal language model.
        tokenizer: Its tokenizer.
        batch_size: Windows in a batch, of 512 tokens each.
        grows: Whether more may run at once where a GPU has room.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, grows: bool = False) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
        self._micro = MicroBatch(
            batch_size * WINDOW,
            model.device,
            what="evaluation",
            remedy=_REMEDY,
            most=_MOST * WINDOW if grows else None,
            unit="tokens",
        )

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """Answer requests, without lm-eval's progress bar: ours counts the same requests."""
        return super().loglikelihood(requests, disable_tqdm=True)

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(requests)
        with progress_bar("questions", len(requests)) as advance:
            for batch in _batches(requests, self.max_length, lambda: self._micro.size):
                for number, answer in self._answers(batch):
                    answers[number] = answer
                    name = requests[number][0]
                    if name is not None:
                        self.cache_hook.add_partial("loglikelihood", name, answer)
                advance(sum(len(continuations) for _, continuations in batch))
        return [answer for answer in answers if answer is not None]

    def _answers(self, batch: Sequence[Shared]) -> list[tuple[int, Answer]]:
        """Return the number and the answer of every request of some contexts, fewer at once where memory runs out.

        Raises:
            DeviceMemoryError: One context does not fit.
        """
        longest = max(1, *(len(context) for context, _ in batch))
        # What one continuation counts for, in a model whose continuations do not read their contexts again.
        rows = [
            max(len(tokens), -(-(len(context) + len(tokens)) // _CACHED))
            for context, continuations in batch
            for _, tokens in continuations
        ]
        shortest = min(*rows, *(max(1, len(context)) for context, _ in batch))

        def run(size: int) -> list[tuple[int, Answer]]:
            at_once = max(1, size // longest)
            parts = [batch[start : start + at_once] for start in range(0, len(batch), at_once)]
            return [found for part in parts for found in self._answer(part)]

        most = max(len(batch) * longest, len(rows) * max(rows))
        return self._micro.whole(run, at_most=most, at_least=2 * shortest - 1)

    def _answer(self, batch: Sequence[Shared]) -> Iterator[tuple[int, Answer]]:
        """Yield the number and the answer of every request of some contexts.

        All contexts are read up to the length of the shortest. The rest of a longer one is prepended to each of its
        continuations, so no position of the cache is padding, and no mask is needed.
        """
        for context, continuations in batch:
            tokens = [*context, *(token for _, continuation in continuations for token in continuation)]
            rows_of_model = self.model.get_input_embeddings().weight.shape[0]
            check_tokens(tokens, rows_of_model, self.tokenizer, "a question", "the model")
        head, cache_key = Head(self.model), cache_name(base_of(self.model))
        common = min(len(context) for context, _ in batch)
        contexts = torch.tensor([context[:common] for context, _ in batch], device=self.device)
        output = base_of(self.model)(input_ids=contexts, use_cache=True)
        cache, last, output_class = output.get(cache_key), output.last_hidden_state[:, -1], type(output)
        if cache is None or has_state(cache):
            common, cache = 0, None  # every continuation reads its context, whose last state is then its own
        rows = [
            _Row(row, number, context[common:], tokens)
            for row, (context, continuations) in enumerate(batch)
            for number, tokens in continuations
        ]
        longest = max(len(row.inputs) for row in rows)
        at_once = max(1, self._micro.size // max(longest, -(-(common + longest) // _CACHED), 1))
        parts = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
        for part in parts:
            chosen = torch.tensor([row.context for row in part], device=self.device)
            states = last[chosen, None]
            longest = max(len(row.inputs) for row in part)
            if longest:
                # Padding after a shorter continuation is never attended to, so its value does not matter.
                padded = [row.inputs + [0] * (longest - len(row.inputs)) for row in part]
                part_cache = cache if part is parts[-1] else copy.deepcopy(cache)
                if part_cache is not None:
                    part_cache.reorder_cache(chosen)  # layers of all kinds have it
                found = base_of(self.model)(
                    input_ids=torch.tensor(padded, device=self.device),
                    use_cache=part_cache is not None,
                    **({} if part_cache is None else {cache_key: part_cache}),
                )
                states = torch.cat([states, found.last_hidden_state], dim=1)
            predicting = torch.cat(
                [states[i, len(row.rest) : len(row.rest) + len(row.tokens)] for i, row in enumerate(part)]
            )
            labels = torch.tensor([token for row in part for token in row.tokens], device=self.device)
            likelihoods, greedy = _token_likelihoods(head, predicting, labels, output_class)
            position = 0
            for row in part:
                span = slice(position, position + len(row.tokens))
                yield row.number, (float(likelihoods[span].sum()), bool(greedy[span].all()))
                position += len(row.tokens)


Shared = tuple[list[int], list[tuple[int, list[int]]]]
"""A context, with the number and the tokens of each request that continues it."""


@dataclass(frozen=True)
class _Row:
    """One request.

    Args:
        context: Number of its context in the batch.
        number: Its own number.
        rest: Tokens of the context that are not read yet.
        tokens: Tokens of the continuation.
    """

    context: int
    number: int
    rest: list[int]
    tokens: list[int]

    @property
    def inputs(self) -> list[int]:
        """What has to be read: the last token is only predicted."""
        return self.rest + self.tokens[:-1]


def _batches(
    requests: Sequence[Request], max_length: int, tokens_at_once: Callable[[], int]
) -> Iterator[list[Shared]]:
    """Yield batches of contexts of similar length, the longest first, so that running out of memory happens early.

    Args:
        requests: The requests.
        max_length: Tokens that the model can read; longer requests lose their first ones.
        tokens_at_once: Gives the tokens of contexts in a batch, which may change from one to the next.
    """
    shared: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for number, (_, tokens_before, continuation) in enumerate(requests):
        tokens = (tokens_before + continuation)[-(max_length + 1) :]
        shared.setdefault(tuple(tokens[: -len(continuation)]), []).append((number, continuation))
    batch: list[Shared] = []
    for context, continuations in sorted(shared.items(), key=lambda entry: -len(entry[0])):
        longest = len(batch[0][0]) if batch else 0
        if batch and (longest - len(context) > _SPREAD or (len(batch) + 1) * longest > tokens_at_once()):
            yield batch
            batch = []
        batch.append((list(context), continuations))
    if batch:
        yield batch


def _token_likelihoods(
    head: Head, states: torch.Tensor, labels: torch.Tensor, output_class: type
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-likelihood of each label, and whether it is the most likely token.

    Args:
        head: The model's head.
        states: Its inputs, shape (tokens, hidden).
        labels: The target tokens, shape (tokens,).
        output_class: Class of the base's output.

    Returns:
        float64 and bool, shape (tokens,), on the CPU.
    """
    rows = head.rows
    likelihoods, greedy = [], []
    for start in range(0, len(labels), rows):
        targets = labels[start : start + rows]
        logits = head(states[start : start + rows], output_class).float()
        likelihoods.append(-torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu())
        greedy.append((logits.argmax(-1) == targets).cpu())
    found = torch.cat(likelihoods)
    if (kind := kind_of(found)) is not None:
        raise NotFiniteError(f"the model gives {kind}; try dtype='float32', or an intact copy of the model")
    return found, torch.cat(greedy)
