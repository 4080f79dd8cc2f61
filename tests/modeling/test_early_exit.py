"""A model's first layers alone: which classes run them, and which exits are within a model."""

from __future__ import annotations

import pytest
import torch

from optimum_ishrink import RequestError
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.modeling.early_exit import check_exits, check_exits_run, first_layers
from tests.helpers.tiny import tiny_config, tiny_model


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen2", "mixtral"])
def test_classes_that_run_their_first_layers(model_type: str) -> None:
    check_exits_run(*bind_config(tiny_config(model_type).to_dict()))


@pytest.mark.parametrize("model_type", ["opt", "gpt_neox"])
def test_classes_that_run_all_layers_have_no_early_exit(model_type: str) -> None:
    with pytest.raises(RequestError, match=f"the class of {model_type} runs all of its layers whatever"):
        check_exits_run(*bind_config(tiny_config(model_type).to_dict()))


def test_a_class_that_cannot_run_its_first_layers_alone() -> None:
    with pytest.raises(RequestError, match="the class of gemma4_text cannot run its first layers alone"):
        check_exits_run(*bind_config(tiny_config("gemma4_text").to_dict()))


def test_first_layers_are_those_of_a_shallower_model() -> None:
    model = tiny_model(tiny_config("llama"))
    shallow = tiny_model(tiny_config("llama", num_hidden_layers=2))
    wanted = model.state_dict()
    shallow.load_state_dict({name: wanted[name] for name in shallow.state_dict()})
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode(), first_layers(model, 2):
        assert torch.equal(model(ids).logits, shallow(ids).logits)
    assert model.config.num_hidden_layers == 4


def test_exits_outside_the_layers() -> None:
    check_exits([1, 3], 4)
    for count in (0, 4, 9):
        with pytest.raises(RequestError, match=f"after {count} layers is not within this model of 4; .* from 1 to 3"):
            check_exits([2, count], 4)
    with pytest.raises(RequestError, match="an early exit is named twice in 2,2"):
        check_exits([2, 2], 4)
