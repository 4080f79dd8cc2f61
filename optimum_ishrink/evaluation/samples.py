"""What models write behind a few fixed prompts: damage that no choice between given answers shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..progress import progress_bar

PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "A shop sells pens at 3 for 2 euros. How much do 12 pens cost? Show the steps.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
)
"""Fixed, so that cards can be laid side by side: an explanation, a calculation, and free text."""


def write_samples(model: Any, tokenizer: Any, max_new_tokens: int, prompts: Sequence[str] = PROMPTS) -> list[str]:
    """Return what a model writes behind each prompt, the most likely token each time.

    Decoding is plain greedy whatever the model's generation config asks for, so that two models differ by their
    weights alone. It ends at an end-of-text token.

    Args:
        model: The model.
        tokenizer: Its tokenizer; with a chat template the prompt is a user's turn.
        max_new_tokens: Tokens written at most.
        prompts: The prompts.

    Returns:
        The text behind each prompt, without special tokens.
    """
    ends = end_tokens(model, tokenizer)
    found = []
    with progress_bar("writing samples", len(prompts)) as advance:
        for prompt in prompts:
            ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
            found.append(tokenizer.decode(_greedy(model, ids, max_new_tokens, ends), skip_special_tokens=True))
            advance(1)
    return found


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
def _greedy(model: Any, ids: torch.Tensor, max_new_tokens: int, ends: set[int]) -> list[int]:
    written: list[int] = []
    cache = None
    for _ in range(max_new_tokens):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)
        token = int(ids.item())
        if token in ends:
            break
        written.append(token)
    return written
