"""Sampling text from a model, with the likelihood of each window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import StaticCache

from ..core.finite import check_logits
from ..core.key_value_cache import keeps_cache, step_reader
from ..core.limits import check_tokens
from ..core.progress import progress_bar
from ..errors import DataError
from .conversations import MARK
from .sources import SAMPLED_TOGETHER
from .windows import beginning


@dataclass(frozen=True)
class SampledText:
    """Windows that a model sampled.

    Args:
        input_ids: Token ids, int64, shape (windows, length), on the CPU.
        mean_nll: Mean negative log-likelihood of each window's tokens except the first, at temperature 1, in nats: the
            log of its perplexity. float64, shape (windows,).
    """

    input_ids: torch.Tensor
    mean_nll: torch.Tensor


@torch.no_grad()
def sample_text(
    model: Any,
    tokenizer: Any,
    length: int,
    count: int,
    *,
    seed: int,
    batch_size: int = SAMPLED_TOGETHER,
    temperature: float = 1.0,
) -> SampledText:
    """Sample text from the model itself, by default at temperature 1, which is the model's distribution.

    Windows start at the beginning of a document. If the tokenizer has a chat template, every other window starts at a
    user's turn instead, so that an instruction-tuned model samples what it was tuned for. When a text ends before its
    window, a new text follows.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        length: Tokens in a window.
        count: Windows.
        seed: Seed of the sampling.
        batch_size: Windows sampled at once; it changes the draw.
        temperature: What logits are divided by before a token is drawn: below 1, likely tokens are drawn more often.

    Returns:
        The windows.

    Raises:
        DataError: The tokenizer has no token to start a text with.
    """
    starts = _starts(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    check_tokens([token for start in starts for token in start], rows, tokenizer, "the start of a text", "the model")
    # Sampling uses a separate generator on the CPU: the same seed gives the same draws of a given distribution,
    # independent of torch's global generator, which does not change.
    generator = torch.Generator().manual_seed(seed)
    windows, mean_nll = [], []
    with progress_bar("sampling from the model itself", count * length) as advance:
        for first in range(0, count, batch_size):
            size = min(batch_size, count - first)
            rows = [starts[(first + i) % len(starts)] for i in range(size)]
            found = _sample(model, rows, length, generator, starts[0], tokenizer.eos_token_id, advance, temperature)
            windows.append(found.input_ids)
            mean_nll.append(found.mean_nll)
    return SampledText(torch.cat(windows), torch.cat(mean_nll))


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
    # A cache of fixed size: a growing one is copied at every step, which costs more here than the layers themselves.
    read_before: Any = StaticCache(config=model.config, max_cache_len=length) if keeps_cache(model) else None
    read = step_reader(model)
    mean_nll = torch.zeros(len(prompts), dtype=torch.float64)
    for position in range(length):
        step = torch.tensor([[queue.pop(0)] for queue in pending])
        for row, token in zip(rows, step.flatten().tolist(), strict=True):
            row.append(token)
        output, read_before = read(step.to(model.device), read_before, logits_to_keep=1)
        logits = output.logits[:, -1].float()
        check_logits(logits, model, torch.tensor(rows), "the model", "the text that it samples itself")
        # Inverse transform sampling: one uniform number per row, where torch.multinomial draws one per token.
        cumulative = (logits / temperature).softmax(-1).cumsum(-1).cpu()
        level = torch.rand(len(rows), 1, generator=generator) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, level).clamp_(max=cumulative.shape[1] - 1).flatten().tolist()
        for queue, token in zip(pending, drawn, strict=True):
            if not queue:
                queue += [token, *restart] if token == eos else [token]
        if position + 1 < length:
            # For the next token, whether it was drawn or is from the template.
            following = torch.tensor([queue[0] for queue in pending], device=logits.device)
            mean_nll += torch.nn.functional.cross_entropy(logits, following, reduction="none").double().cpu()
        advance(len(rows))
    return SampledText(torch.tensor(rows), mean_nll / max(1, length - 1))


def _starts(tokenizer: Any) -> list[list[int]]:
    """Return the prompts that sampling starts from: a document's beginning and, with a template, a user's turn."""
    begin = beginning(tokenizer)
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not begin and token is None:
        raise DataError("the tokenizer has neither a beginning- nor an end-of-text token to sample from; name a text")
    starts = [begin or [token]]
    if tokenizer.chat_template:
        try:
            chat = tokenizer.apply_chat_template([{"role": "user", "content": MARK}], tokenize=False)
        except Exception:  # a template may refuse a single user turn; then only documents are sampled
            chat = ""
        before, mark, _ = chat.partition(MARK)
        turn = list(tokenizer(before, add_special_tokens=False)["input_ids"]) if mark and before else []
        # Where the template writes nothing in front of a user's words, these begin a document like any other.
        if turn:
            starts.append(turn if turn[: len(begin)] == begin else [*begin, *turn])
    return starts
