"""Text that a model samples itself, and how likely it finds its own words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import StaticCache

from ..core.progress import progress_bar
from ..errors import DataError


@dataclass(frozen=True)
class SampledText:
    """Windows that a model sampled.

    Args:
        input_ids: Token ids, int64, shape (windows, length), on the CPU.
        surprise: Mean negative log-likelihood of each window's tokens but the first, at temperature 1, in nats: the
            log of its perplexity. float64, shape (windows,).
    """

    input_ids: torch.Tensor
    surprise: torch.Tensor


@torch.no_grad()
def sample_text(
    model: Any,
    tokenizer: Any,
    length: int,
    count: int,
    *,
    seed: int,
    batch_size: int = 64,
    temperature: float = 1.0,
) -> SampledText:
    """Sample text from the model itself, by default at temperature 1, which is its own distribution.

    Half of the windows start at the beginning of a document. Where the tokenizer has a chat template, the other half
    start where a user would speak, so that an instruction-tuned model shows what it was tuned for; a window whose text
    ends early goes on with a new one.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        length: Tokens in a window.
        count: Windows.
        seed: Seed of the sampling.
        batch_size: Windows sampled at once; it changes the draw, so it is fixed by default.
        temperature: What logits are divided by before a token is drawn: below 1 likely tokens are drawn more often.

    Returns:
        The windows.

    Raises:
        DataError: The tokenizer has no token that a text begins with.
    """
    starts = _starts(tokenizer)
    # Sampling has a generator of its own on the CPU: the same seed gives the same draws of a given distribution
    # whatever else has used torch's global one, and that one is left as it was.
    generator = torch.Generator().manual_seed(seed)
    windows, surprise = [], []
    with progress_bar("sampling from the model itself", count * length) as advance:
        for first in range(0, count, batch_size):
            size = min(batch_size, count - first)
            rows = [starts[(first + i) % len(starts)] for i in range(size)]
            found = _sample(model, rows, length, generator, starts[0], tokenizer.eos_token_id, advance, temperature)
            windows.append(found.input_ids)
            surprise.append(found.surprise)
    return SampledText(torch.cat(windows), torch.cat(surprise))


def _sample(
    model: Any,
    prompts: list[list[int]],
    length: int,
    generator: torch.Generator,
    restart: list[int],
    eos: int | None,
    advance: Any,
    temperature: float,
) -> SampledText:
    """Extend every prompt to `length` tokens; after an end-of-text token a new document begins."""
    pending = [list(prompt) for prompt in prompts]
    rows: list[list[int]] = [[] for _ in prompts]
    # A cache of fixed size: one that grows is copied at every step, which costs more here than the layers themselves.
    cache = StaticCache(config=model.config, max_cache_len=length)
    surprise = torch.zeros(len(prompts), dtype=torch.float64)
    for position in range(length):
        step = torch.tensor([[queue.pop(0)] for queue in pending])
        for row, token in zip(rows, step.flatten().tolist(), strict=True):
            row.append(token)
        logits = model(input_ids=step.to(model.device), past_key_values=cache, use_cache=True).logits[:, -1].float()
        # Inverse of the cumulative distribution: one uniform number a row, where torch.multinomial draws one a token.
        cumulative = (logits / temperature).softmax(-1).cumsum(-1).cpu()
        level = torch.rand(len(rows), 1, generator=generator) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, level).clamp_(max=cumulative.shape[1] - 1).flatten().tolist()
        for queue, token in zip(pending, drawn, strict=True):
            if not queue:
                queue += [token, *restart] if token == eos else [token]
        if position + 1 < length:
            # Of the token that comes next, be it drawn or the template's.
            following = torch.tensor([queue[0] for queue in pending], device=logits.device)
            surprise += torch.nn.functional.cross_entropy(logits, following, reduction="none").double().cpu()
        advance(len(rows))
    return SampledText(torch.tensor(rows), surprise / max(1, length - 1))


def _starts(tokenizer: Any) -> list[list[int]]:
    """Return the prompts that sampling starts from: a document's beginning and, with a template, a user's turn."""
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise DataError("the tokenizer has neither a beginning- nor an end-of-text token to sample from; name a text")
    starts = [[begin]]
    if tokenizer.chat_template:
        mark = "\u2402"  # a sign that no template writes: what stands before it is how a user's turn begins
        try:
            chat = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
        except Exception:  # a template may refuse a lone user turn; then documents alone are sampled
            chat = ""
        if mark in chat:
            starts.append(tokenizer(chat.split(mark)[0], add_special_tokens=False)["input_ids"])
    return starts
