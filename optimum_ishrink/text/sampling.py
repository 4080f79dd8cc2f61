"""Sampling text from a model, with the likelihood of each window."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..core.device import to_device
from ..core.finite import INFINITE, NAN, where_not_finite
from ..core.key_value_cache import keeps_cache, own_cache, step_reader
from ..core.limits import check_tokens
from ..core.micro_batch import MicroBatch
from ..core.preallocated_cache import preallocated_cache
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
    prompts: Sequence[list[int]] | None = None,
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
        batch_size: As many windows in a row share their random numbers, so it is fixed by default: it changes the
            draw. As many are sampled at once on a CPU. A GPU takes as many as it has memory for, with the same
            numbers.
        temperature: What logits are divided by before a token is drawn: below 1, likely tokens are drawn more often.
        prompts: What each window starts with instead, in tokens, shorter than the window. No bar is shown then: who
            has prompts has a bar of its own.

    Returns:
        The windows.

    Raises:
        DataError: The tokenizer has no token to start a text with.
        NotFiniteError: The model gives NaN or infinite values.
        DeviceMemoryError: One window does not fit into memory.
    """
    starts = _starts(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    check_tokens([token for start in starts for token in start], rows, tokenizer, "the start of a text", "the model")
    takes_cache = keeps_cache(model) and own_cache(model) is None
    levels = _levels(count, length, batch_size, seed)
    begin = prompts or [starts[number % len(starts)] for number in range(count)]
    micro = MicroBatch(batch_size, model.device, what="sampling", remedy=_REMEDY, most=count)
    bar = (
        nullcontext(lambda steps: None) if prompts else progress_bar("sampling from the model itself", count * length)
    )
    with bar as advance:
        shown = 0

        def count_tokens(windows: int) -> None:
            nonlocal shown
            shown += windows
            advance(windows)

        def run(part: slice) -> SampledText:
            nonlocal shown
            shown = 0
            ending = (tokenizer.eos_token_id, starts[0])
            return _sample(
                model, begin[part], levels[part], ending, count_tokens, temperature, takes_cache=takes_cache
            )

        found = list(micro.each(count, run, undo=lambda: advance(-shown)))
    return SampledText(torch.cat([each.input_ids for each in found]), torch.cat([each.mean_nll for each in found]))


_REMEDY = "shorten the windows (--calibration-length, --recovery-length), or give a text instead of self"

_CHECKED = 32
"""Tokens after which it is looked whether the model's predictions are finite: a look waits for the device."""


_BLOCK = 256
"""Tokens whose probabilities are summed first."""


def _levels(count: int, length: int, batch_size: int, seed: int) -> torch.Tensor:
    """Return the uniform random number of each token, shape (count, length), float32.

    They are of a separate generator on the CPU: the same seed gives the same draws of a given distribution,
    independent of torch's global generator, which does not change. A batch has its numbers token by token.

    Args:
        count: Windows.
        length: Tokens in a window.
        batch_size: Windows in a batch.
        seed: Seed of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch_size, count - first) for first in range(0, count, batch_size)]
    return torch.cat([torch.rand(length, size, generator=generator).T for size in sizes])


def _sample(
    model: Any,
    prompts: Sequence[list[int]],
    levels: torch.Tensor,
    ending: tuple[int | None, list[int]],
    advance: Callable[[int], None],
    temperature: float,
    *,
    takes_cache: bool,
) -> SampledText:
    """Extend every prompt; after an end-of-text token a new document begins.

    All of it is arithmetic on the model's device: the program launches the work of the next token while the device
    still computes this one.

    Args:
        model: The model.
        prompts: What each window begins with.
        levels: A uniform random number for each token, shape (windows, length).
        ending: The end-of-text token, if there is one, and the tokens that follow it.
        advance: Called with the number of windows after each token.
        temperature: What logits are divided by before a token is drawn.
        takes_cache: Whether the model takes a cache that is made for it.
    """
    eos, restart = ending[0], torch.tensor(ending[1], device=model.device)
    count, length = levels.shape
    # What is not drawn, because a prompt or what follows an end of a text has it; -1 where a token is drawn.
    width = max(length + 1 + len(restart), *map(len, prompts))
    forced = torch.tensor([prompt + [-1] * (width - len(prompt)) for prompt in prompts])
    given, levels = to_device(forced, model.device), to_device(levels, model.device)
    rows = torch.empty(count, length, dtype=torch.int64, device=model.device)
    before: Any = preallocated_cache(model.config, length) if takes_cache else None
    read = step_reader(model)
    # Not every class asks the cache how much it holds.
    tells_places = keeps_cache(model) and "position_ids" in inspect.signature(model.forward).parameters
    nll = torch.zeros(count, dtype=torch.float64, device=model.device)
    odd = torch.zeros(2, dtype=torch.bool, device=model.device)
    token = given[:, 0]
    for position in range(length):
        rows[:, position] = token
        place = {"position_ids": torch.full((count, 1), position, device=model.device)} if tells_places else {}
        output, before = read(token[:, None], before, logits_to_keep=1, **place)
        logits = output.logits[:, -1].float()
        total = logits.sum(-1)  # one pass, which carries NaN and infinity on
        odd |= torch.stack([total.isnan().any(), total.isinf().any()])
        last = position + 1 == length
        if (last or (position + 1) % _CHECKED == 0) and odd.any():
            kind, tokens = NAN if odd[0] else INFINITE, rows[:, : position + 1].cpu()
            raise where_not_finite(kind, model, tokens, "the model", "the text that it samples itself")
        likely = (logits if temperature == 1 else logits / temperature).softmax(-1)
        drawn = draw(likely, levels[:, position])
        if not last:
            following = given[:, position + 1]
            free = following < 0
            following = torch.where(free, drawn, following)
            if eos is not None:
                after = slice(position + 2, position + 2 + len(restart))
                ended = free & (following == eos)
                given[:, after] = torch.where(ended[:, None], restart, given[:, after])
            # For the next token, whether it was drawn or is from the template.
            nll += (logits.logsumexp(-1) - logits.gather(1, following[:, None])[:, 0]).double()
            token = following
        advance(count)
    return SampledText(rows.cpu(), nll.cpu() / max(1, length - 1))


def draw(likely: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Draw a token for each row by inverse transform sampling: one uniform number, where torch.multinomial takes many.

    The sum up to each token is taken in two steps, over blocks of tokens and then in the block that holds the level:
    a running sum over a whole vocabulary is slow on a CPU.

    Args:
        likely: Probabilities, shape (rows, vocabulary), float32.
        levels: Uniform random numbers, shape (rows,).

    Returns:
        Token ids, shape (rows,).
    """
    rows, count = likely.shape
    whole = count // _BLOCK * _BLOCK
    sums = torch.cat([likely[:, :whole].view(rows, -1, _BLOCK).sum(-1), likely[:, whole:].sum(-1, keepdim=True)], -1)
    running = sums.cumsum(-1)
    level = levels[:, None] * running[:, -1:]
    block = torch.searchsorted(running, level).clamp_(max=sums.shape[1] - 1)
    before = running.gather(1, block) - sums.gather(1, block)
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=likely.device)
    inside = likely.gather(1, tokens.clamp(max=count - 1)) * (tokens < count)
    place = torch.searchsorted(before + inside.cumsum(-1), level).clamp_(max=_BLOCK - 1)
    return tokens.gather(1, place)[:, 0].clamp_(max=count - 1)


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
