from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.edge import block_values as module
from optimum_ishrink.edge.block_values import block_values, check_values
from optimum_ishrink.errors import RequestError
from optimum_ishrink.options.gguf_types import PLAIN_TYPES


def given_back(weight: torch.Tensor, name: str) -> torch.Tensor:
    """What the `gguf` package makes of it."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    values = np.ascontiguousarray(weight.float().numpy())
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind))


@given(
    name=st.sampled_from(PLAIN_TYPES),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-7, 1e-3, 0.05, 1.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_values_are_those_of_the_gguf_package_to_the_bit(
    name: str, seed: int, scale: float, dtype: torch.dtype
) -> None:
    weight = (scale * torch.randn(7, 96, generator=torch.Generator().manual_seed(seed))).to(dtype)
    assert torch.equal(block_values(weight, name), given_back(weight, name))


@pytest.mark.parametrize("name", PLAIN_TYPES)
def test_ties_zeros_and_constants_are_as_there(name: str) -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(-8, 9, (64, 64), generator=draw).float() / 16  # the largest of a block has both signs in many
    rows[0], rows[1], rows[2] = 0, 0.37, -0.37
    rows[3, :32], rows[3, 32:] = 0, torch.linspace(-1, 1, 32)
    rows[4] = torch.tensor([0.5, -0.5]).repeat(32)
    rows[5] = torch.tensor([-0.5, 0.5]).repeat(32)
    assert torch.equal(block_values(rows, name), given_back(rows, name))


def test_any_shape_is_rounded_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(3, 5, 64)
    whole = block_values(weight, "q4_0")
    assert whole.shape == weight.shape
    assert torch.equal(whole[1], block_values(weight[1], "q4_0"))
    monkeypatch.setattr(module, "_CHUNK", 64)
    assert torch.equal(whole, block_values(weight, "q4_0"))


def test_another_rounding_of_the_installed_package_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(4, 64)
    check_values(weight, "q4_0")
    monkeypatch.setattr(gguf.quants, "quantize", lambda data, kind: gguf.quants.Q4_0.quantize(data + 0.1))
    with pytest.raises(
        RequestError, match="the installed gguf package rounds q4_0 otherwise than recovery_for='q4_0'"
    ):
        check_values(weight, "q4_0")
