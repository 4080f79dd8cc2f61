"""lm-eval's log-likelihood requests, with every context run once.

The choices of a question share its words. lm-eval runs these again for every choice, and computes logits over the
whole vocabulary at every position. Here the KV cache of a context serves all of its continuations, and only the
positions that predict them have logits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from ..head import CHUNK, Head
from ..progress import progress_bar

WINDOW = 512
"""Tokens that a window stands for in a batch: `batch_size` windows bound what runs at once, whatever a request's
length."""

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""What lm-eval calls it, tokens of the context, and tokens of the continuation."""

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
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
        self._tokens_at_once = batch_size * WINDOW

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        answers: list[Answer | None] = [None] * len(requests)
        with progress_bar("questions", len(requests)) as advance:
            for batch in _batches(requests, self.max_length, self._tokens_at_once):
                for number, answer in self._answer(batch):
                    answers[number] = answer
                    name = requests[number][0]
                    if name is not None:
                        self.cache_hook.add_partial("loglikelihood", name, answer)
                advance(sum(len(continuations) for _, continuations in batch))
        return [answer for answer in answers if answer is not None]

    def _answer(self, batch: Sequence[Shared]) -> Iterator[tuple[int, Answer]]:
        """Yield the number and the answer of every request of contexts of one length."""
        head = Head(self.model)
        contexts = torch.tensor([context for context, _ in batch], device=self.device)
        output = self.model.base_model(input_ids=contexts, use_cache=True)
        cache, last, output_class = output.past_key_values, output.last_hidden_state[:, -1], type(output)
        rows = [(row, number, tokens) for row, (_, found) in enumerate(batch) for number, tokens in found]
        longest = max(len(tokens) for _, _, tokens in rows)
        at_once = max(1, self._tokens_at_once // (contexts.shape[1] + longest))
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            chosen = torch.tensor([row for row, _, _ in part], device=self.device)
            states = last[chosen, None]
            longest = max(len(tokens) for _, _, tokens in part)
            if longest > 1:
                # What is behind a shorter continuation is never looked back at: its value does not matter.
                padded = [tokens[:-1] + [0] * (longest - len(tokens)) for _, _, tokens in part]
                own = copy.deepcopy(cache)
                own.batch_select_indices(chosen)
                found = self.model.base_model(
                    input_ids=torch.tensor(padded, device=self.device), past_key_values=own, use_cache=True
                )
                states = torch.cat([states, found.last_hidden_state], dim=1)
            kept = torch.cat([states[i, : len(tokens)] for i, (_, _, tokens) in enumerate(part)])
            labels = torch.tensor([token for _, _, tokens in part for token in tokens], device=self.device)
            likelihoods, greedy = _token_likelihoods(head, kept, labels, output_class)
            position = 0
            for _, number, tokens in part:
                span = slice(position, position + len(tokens))
                yield number, (float(likelihoods[span].sum()), bool(greedy[span].all()))
                position += len(tokens)


Shared = tuple[list[int], list[tuple[int, list[int]]]]
"""A context, with the number and the tokens of each request that continues it."""


def _batches(requests: Sequence[Request], max_length: int, tokens_at_once: int) -> Iterator[list[Shared]]:
    """Yield batches of contexts of one length, the longest first: what does not fit fails at once.

    Args:
        requests: The requests.
        max_length: Tokens that the model can read; longer requests lose their first ones.
        tokens_at_once: Tokens of contexts in a batch.
    """
    shared: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for number, (_, tokens_before, continuation) in enumerate(requests):
        tokens = (tokens_before + continuation)[-(max_length + 1) :]
        shared.setdefault(tuple(tokens[: -len(continuation)]), []).append((number, continuation))
    batch: list[Shared] = []
    for context, continuations in sorted(shared.items(), key=lambda entry: -len(entry[0])):
        if batch and (len(batch[0][0]) != len(context) or (len(batch) + 1) * len(context) > tokens_at_once):
            yield batch
            batch = []
        batch.append((list(context), continuations))
    if batch:
        yield batch


def _token_likelihoods(
    head: Head, states: torch.Tensor, labels: torch.Tensor, output_class: type
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-likelihood of each label, and whether it is the likeliest token.

    Args:
        head: The model's head.
        states: What enters it, shape (tokens, hidden).
        labels: The tokens that came, shape (tokens,).
        output_class: Class of the base's output.

    Returns:
        float64 and bool, shape (tokens,), on the CPU.
    """
    rows = max(1, CHUNK // head.model.config.vocab_size)
    likelihoods, greedy = [], []
    for start in range(0, len(labels), rows):
        wanted = labels[start : start + rows]
        logits = head(states[start : start + rows], output_class).float()
        likelihoods.append(-torch.nn.functional.cross_entropy(logits, wanted, reduction="none").double().cpu())
        greedy.append((logits.argmax(-1) == wanted).cpu())
    return torch.cat(likelihoods), torch.cat(greedy)
