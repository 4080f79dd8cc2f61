"""What a base writes after prompts by greedy decoding, and where a draft would choose the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.progress import progress_bar
from ..errors import DataError
from .assisted import Drafter, Written, write


@dataclass(frozen=True)
class OwnText:
    """A prompt and what the base wrote after it.

    Args:
        prompt: Token ids, shape (1, length).
        written: The output.
    """

    prompt: torch.Tensor
    written: Written


@dataclass(frozen=True)
class Choices:
    """A draft's choices on what a base wrote.

    Args:
        matches: At each token, whether the draft finds it most likely.
        confidences: The probability that the draft gives its most likely token there.
    """

    matches: tuple[bool, ...]
    confidences: tuple[float, ...]


def own_texts(base: Any, prompts: torch.Tensor, new_tokens: int) -> list[OwnText]:
    """Return what a base writes after prompts; a prompt after which it writes a single token is left out.

    Args:
        base: The base.
        prompts: Token ids, shape (prompts, length).
        new_tokens: Tokens to write, at most.

    Raises:
        DataError: It ends the text at once after every prompt.
    """
    found = []
    with progress_bar("writing with the base", len(prompts)) as advance:
        for row in prompts:
            prompt = row[None].to(base.device)
            written = write(base, prompt, new_tokens)
            if len(written.tokens) > 1:
                found.append(OwnText(prompt, written))
            advance(1)
    if not found:
        raise DataError("the model ends its text at once after every prompt; give other --draft-text")
    return found


@torch.inference_mode()
def choices(drafter: Drafter, texts: Sequence[OwnText]) -> list[Choices]:
    """Return a draft's choices on what the base wrote, from one pass over each text.

    That is what decides acceptance under greedy decoding: as far as the base accepts, a draft has read what the base
    wrote.

    Args:
        drafter: The draft.
        texts: What the base wrote.
    """
    found = []
    for text in texts:
        tokens = torch.tensor([text.written.tokens], device=text.prompt.device)
        with drafter.running() as model:
            ids = torch.cat([text.prompt, tokens], dim=1).to(model.device)
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, text.prompt.shape[1] - 1 :].float()
        sure, chosen = logits.softmax(-1).max(-1)
        matches = (chosen.cpu() == tokens[0].cpu()).tolist()
        found.append(Choices(tuple(matches), tuple(sure.tolist())))
    return found


def agreement(found: Sequence[Choices]) -> float:
    """Return the share of tokens that a draft chooses as the base does.

    Args:
        found: Its choices on each text.
    """
    matches = [each for text in found for each in text.matches]
    return sum(matches) / len(matches)
