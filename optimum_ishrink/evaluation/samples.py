"""Texts that models generate after a few fixed prompts: they show damage that multiple choice hides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..core.finite import check_logits, check_predictions, kind_of
from ..core.key_value_cache import keeps_cache, step_reader
from ..core.limits import check_tokens, max_positions
from ..core.progress import progress_bar
from ..errors import RequestError

PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "A shop sells pens at 3 for 2 euros. How much do 12 pens cost? Show the steps.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
)
"""Fixed, so that cards can be compared: an explanation, a calculation, and free text."""


def check_samples(config: Any, tokenizer: Any, max_new_tokens: int, name: str) -> None:
    """Check that a model can read the fixed prompts, and write after them.

    Args:
        config: The model's config.
        tokenizer: Its tokenizer.
        max_new_tokens: Maximum number of new tokens.
        name: The model's name in messages.

    Raises:
        RequestError: It has too few positions, or no embedding for a token of a prompt.
    """
    rows = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    for row in rows:
        check_tokens(row, config.vocab_size, tokenizer, "the prompt of a sample", name)
    longest, limit = max(map(len, rows)), max_positions(config)
    if limit is not None and longest + max_new_tokens > limit:
        most = max(limit - longest, 0)
        raise RequestError(
            f"the prompts of the samples have up to {longest} tokens; with sample_new_tokens={max_new_tokens} they "
            f"do not fit the {limit} positions of {name}; use at most {most} (--sample-new-tokens {most})"
        )


def write_samples(
    model: Any,
    tokenizer: Any,
    max_new_tokens: int,
    prompts: Sequence[str] = PROMPTS,
    *,
    name: str = "the model",
) -> list[str]:
    """Return the text that a model generates after each prompt by greedy decoding.

    Decoding is plain greedy whatever the model's generation config says, so that two models differ by their
    weights alone. It ends at an end-of-text token. All prompts run in one batch, padded on the left: a step of
    decoding reads the weights once for all texts.

    Args:
        model: The model.
        tokenizer: Its tokenizer; with a chat template the prompt is a user's turn.
        max_new_tokens: Maximum number of new tokens.
        prompts: The prompts.
        name: The model's name in messages.

    Returns:
        The text after each prompt, without special tokens.

    Raises:
        NotFiniteError: The model gives NaN or infinite values.
    """
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    with progress_bar("writing samples", max_new_tokens) as advance:
        written = _greedy(model, rows, max_new_tokens, end_tokens(model, tokenizer), advance, name)
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Return a prompt's tokens: as a user's turn where the tokenizer has a chat template, else as plain text.

    Args:
        tokenizer: The tokenizer.
        prompt: The prompt.
    """
    if has_template(tokenizer):
        turn = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return list(tokenizer(prompt)["input_ids"])


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a text, as the model's generation config and the tokenizer name them."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = set(named) if isinstance(named, (list, tuple)) else {named}
    return {token for token in {*ends, tokenizer.eos_token_id} if token is not None}


@torch.inference_mode()
def _greedy(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    ends: set[int],
    advance: Callable[[int], None],
    name: str,
) -> list[list[int]]:
    """Extend every prompt until all have ended; the padding of shorter ones is masked."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    written: list[list[int]] = [[] for _ in prompts]
    writing = set(range(len(prompts)))
    read_on, read_before = step_reader(model), None
    for step in range(max_new_tokens):
        output, read_before = read_on(ids, read_before, attention_mask=mask, position_ids=positions, logits_to_keep=1)
        if kind_of(output.logits[:, -1:]) is not None:
            for prompt, after in zip(prompts, written, strict=True):
                read = torch.tensor([[*prompt, *after]])
                check_predictions(model, read, name, "the prompt of a sample")
            check_logits(output.logits, model, ids, name, "the prompts of the samples")
        ids = output.logits[:, -1:].argmax(-1)
        for row, token in enumerate(ids.flatten().tolist()):
            if token in ends:
                writing.discard(row)
            elif row in writing:
                written[row].append(token)
        advance(1 if writing else max_new_tokens - step)
        if not writing:
            break
        mask, following = torch.nn.functional.pad(mask, (0, 1), value=1), positions[:, -1:] + 1
        positions = following if keeps_cache(model) else torch.cat([positions, following], dim=1)
    return written
