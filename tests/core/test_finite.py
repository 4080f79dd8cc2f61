"""Models whose numbers are not finite: which module is to blame."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_ishrink.core.finite import INFINITE, NAN, check_logits, check_predictions, kind_of, not_finite
from optimum_ishrink.errors import NotFiniteError
from tests.helpers.tiny import tiny_config, tiny_model

IDS = torch.arange(3, 12)[None]


def broken(model_type: str, part: str, value: float) -> Any:
    model = tiny_model(tiny_config(model_type))
    with torch.no_grad():
        model.get_parameter(part).view(-1)[0] = value
    return model


def test_kinds() -> None:
    one = torch.ones(3)
    assert kind_of(one, torch.arange(2)) is None
    assert kind_of(one, one / 0) == INFINITE
    assert kind_of(one * float("nan"), one / 0) == NAN


@pytest.mark.parametrize(
    ("model_type", "part"),
    [
        ("llama", "model.layers.2.mlp.down_proj.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "lm_head.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),
        ("mixtral", "model.layers.3.mlp.experts.down_proj"),
        ("gemma2", "model.layers.0.input_layernorm.weight"),
    ],
)
@pytest.mark.parametrize(("value", "kind"), [(float("nan"), NAN), (float("inf"), INFINITE)])
def test_the_module_with_damaged_weights_is_named(model_type: str, part: str, value: float, kind: str) -> None:
    model = broken(model_type, part, value)
    module = part.removesuffix(".weight").removesuffix(".down_proj") if "experts" in part else part[:-7]
    ids = torch.arange(3, 260)[None]  # every expert is chosen by some token
    error = not_finite(model, ids, "tiny", "words.txt")
    assert str(error).startswith(f"tiny gives {kind} on words.txt, first in {module}, whose weights hold {kind}: take")


def test_an_overflow_names_the_dtype() -> None:
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e38)
    with pytest.raises(NotFiniteError, match=r"first in model.layers.1.*too large even for float32"):
        check_predictions(model, IDS, "tiny", "words.txt")
    small = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        small.model.layers[1].mlp.down_proj.weight.fill_(3e38)
    with pytest.raises(NotFiniteError, match=r"too large for bfloat16: try dtype='float32'"):
        check_predictions(small.bfloat16(), IDS, "tiny", "words.txt")


def test_a_whole_model_has_no_error() -> None:
    model = tiny_model(tiny_config("llama"))
    check_predictions(model, IDS, "tiny", "words.txt")
    assert not_finite(model, IDS, "tiny", "words.txt") is None
    with pytest.raises(NotFiniteError, match="tiny gives NaN on words.txt; try dtype='float32'"):
        check_logits(torch.tensor([float("nan")]), model, IDS, "tiny", "words.txt")
