"""Assisted generation: the output is the base's, and what is counted is what a replay says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from optimum_ishrink.errors import DataError
from optimum_ishrink.speculation.assisted import Drafter, logit_gap, set_policy, write
from optimum_ishrink.speculation.formula import Policy, replay
from optimum_ishrink.speculation.own_text import OwnText, agreement, choices, own_texts
from optimum_ishrink.speculation.step_cost import PASS_LENGTHS, measure_costs
from optimum_ishrink.speculation.together import BASE, measure_together
from tests.helpers.tiny import tiny_config, tiny_model

PROMPTS = torch.randint(3, 300, (3, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base() -> Any:
    model = tiny_model(tiny_config("llama"))
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def near(base: Any) -> Any:
    """A model that mostly chooses as the base does."""
    model = copy.deepcopy(base)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.3" in name:
                parameter.mul_(0.8)
    return model


@pytest.fixture(scope="module")
def texts(base: Any) -> list[OwnText]:
    return own_texts(base, PROMPTS, 16)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("exit_after", [None, 3])
def test_the_output_is_the_bases_and_a_replay_says_how(
    base: Any, near: Any, texts: list[OwnText], length: int, exit_after: int | None
) -> None:
    drafter = Drafter("draft", near if exit_after is None else base, exit_after)
    set_policy(drafter.model, Policy(length))
    found = choices(drafter, texts)
    assert 0 < agreement(found) < 1
    for text, chosen in zip(texts, found, strict=True):
        written = write(base, text.prompt, len(text.written.tokens), drafter)
        assert written.tokens == text.written.tokens
        assert written.rounds == replay(chosen.matches, chosen.confidences, Policy(length))
    assert base.config.num_hidden_layers == 4
    assert "generate" not in vars(drafter.model)


def test_what_is_measured_of_several_drafts(base: Any, near: Any, texts: list[OwnText]) -> None:
    drafters = {
        "near": (Drafter("near", near), Policy(2)),
        "whole": (Drafter("whole", copy.deepcopy(base)), Policy(3)),
    }
    found = measure_together(base, drafters, texts, 2)
    assert BASE not in found
    whole = found["whole"]
    assert whole.identical == whole.prompts == 3
    assert whole.acceptance == 1
    assert whole.tokens_per_pass == 4
    assert whole.speed.verdict == "too few rounds to tell"
    assert found["near"].acceptance < 1


def test_a_prompt_after_which_the_output_differs_is_named(base: Any, texts: list[OwnText]) -> None:
    other = tiny_model(tiny_config("llama"), seed=5)
    found = measure_together(other, {"draft": (Drafter("draft", base), Policy(1))}, texts, 1)["draft"]
    assert found.identical == 0
    first = found.divergent[0]
    assert first.gap is not None and first.gap < 0  # another model is not a near tie: it prefers its own token
    own = texts[0].written.tokens
    assert logit_gap(base, texts[0].prompt, own, (own[0] + 1) % 300, 0) > 0


def test_texts_that_are_too_short(base: Any) -> None:
    ending = copy.deepcopy(base)
    first = write(base, PROMPTS[:1], 2).tokens[0]
    ending.generation_config.eos_token_id = first
    with pytest.raises(DataError, match="ends its text at once after every prompt; give other --draft-text"):
        own_texts(ending, PROMPTS[:1], 8)
    with pytest.raises(DataError, match="too few tokens after every prompt to time them"):
        measure_together(base, {}, own_texts(base, PROMPTS[:1], 2), 1)


def test_costs_are_in_steps_of_the_base(base: Any) -> None:
    drafters = [Drafter("exit", base, 1), Drafter("whole", copy.deepcopy(base))]
    found = measure_costs(base, drafters, PROMPTS[:1], rounds=2)
    assert found.keys() == {"exit", "whole"}
    assert found["exit"].passes[1] == 1
    assert tuple(found["exit"].passes) == PASS_LENGTHS
    assert all(costs.draft > 0 for costs in found.values())
