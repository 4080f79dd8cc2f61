from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.edge.calibrated_rounding import calibrated_blocks
from optimum_ishrink.edge.gguf_quantizations import TENSOR_TYPES
from optimum_ishrink.modeling.error_carry import error_carry
from optimum_ishrink.options.gguf_types import PLAIN_TYPES


def kind(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def values(blocks: np.ndarray, name: str) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(blocks, kind(name)))


def nearest(weight: torch.Tensor, name: str) -> torch.Tensor:
    return values(gguf.quants.quantize(weight.numpy(), kind(name)), name)


def correlated(columns: int, seed: int, tokens: int = 512) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, columns // 4, generator=draw) @ torch.randn(columns // 4, columns, generator=draw)
    return few + 0.3 * torch.randn(tokens, columns, generator=draw)


def loss(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((inputs @ (weight - rounded).T).square().sum())


@pytest.mark.parametrize("name", PLAIN_TYPES)
def test_a_row_has_the_bytes_of_its_type(name: str) -> None:
    weight = torch.randn(5, 96)
    blocks = calibrated_blocks(weight, error_carry(torch.eye(96)), name)
    assert blocks.dtype == np.uint8
    assert blocks.shape == (5, TENSOR_TYPES[name].size(96)) == gguf.quants.quantize(weight.numpy(), kind(name)).shape


@given(name=st.sampled_from(PLAIN_TYPES), seed=st.integers(0, 50))
def test_what_is_computed_changes_less_than_with_nearest_values(name: str, seed: int) -> None:
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(seed + 1000))
    inputs = correlated(128, seed)
    rounded = values(calibrated_blocks(weight, error_carry(inputs.T @ inputs), name), name)
    assert loss(weight, rounded, inputs) < 0.8 * loss(weight, nearest(weight, name), inputs)


@given(name=st.sampled_from(PLAIN_TYPES), seed=st.integers(0, 50), scale=st.sampled_from([1e-3, 0.02, 1.0, 30.0]))
def test_with_uncorrelated_inputs_no_block_is_further_than_its_nearest_values(
    name: str, seed: int, scale: float
) -> None:
    weight = scale * torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    rounded = values(calibrated_blocks(weight, error_carry(torch.eye(64)), name), name)
    assert float((rounded - weight).square().sum()) <= 1.0001 * float((nearest(weight, name) - weight).square().sum())


@given(name=st.sampled_from(PLAIN_TYPES), seed=st.integers(0, 50))
def test_weights_that_a_file_holds_already_are_kept(name: str, seed: int) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    inputs = correlated(64, seed)
    held = nearest(weight, name)
    rounded = values(calibrated_blocks(held, error_carry(inputs.T @ inputs), name), name)
    assert float((rounded - held).abs().max()) <= 2e-3 * float(held.abs().max())


@pytest.mark.parametrize("name", PLAIN_TYPES)
def test_zeros_stay_and_inputs_that_were_never_seen_do_no_harm(name: str) -> None:
    weight = torch.randn(3, 64)
    weight[1] = 0
    weight[:, 32:] = 0
    for moments in (torch.zeros(64, 64), torch.ones(64, 64), torch.diag((torch.arange(64) % 2).float())):
        rounded = values(calibrated_blocks(weight, error_carry(moments), name), name)
        assert bool(rounded.isfinite().all()) and not bool(rounded[1].any())


def test_many_rows_are_rounded_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, inputs = torch.randn(10, 64), correlated(64, 0)
    whole = calibrated_blocks(weight, error_carry(inputs.T @ inputs), "q4_0")
    monkeypatch.setattr("optimum_ishrink.edge.calibrated_rounding._ROWS", 3)
    assert np.array_equal(whole, calibrated_blocks(weight, error_carry(inputs.T @ inputs), "q4_0"))
