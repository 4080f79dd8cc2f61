from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.edge.block_values import block_values
from optimum_ishrink.edge.kept_rounding import _best_grid, _round_block, kept_values
from optimum_ishrink.modeling.error_carry import error_carry
from optimum_ishrink.options.gguf_types import PLAIN_TYPES


def correlated(columns: int, seed: int, tokens: int = 512) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, columns // 4, generator=draw) @ torch.randn(columns // 4, columns, generator=draw)
    return few + 0.3 * torch.randn(tokens, columns, generator=draw)


def loss(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    return float((inputs @ (weight - rounded).T).square().sum())


@given(
    name=st.sampled_from(PLAIN_TYPES),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.02, 0.3, 8.0]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_nearest_rounding_finds_the_chosen_values(name: str, seed: int, scale: float, dtype: torch.dtype) -> None:
    block = scale * torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))
    inputs = correlated(32, seed)
    carry = error_carry(inputs.T @ inputs)
    grid = _best_grid(block, 1 / carry.diagonal().square(), name, dtype)
    stored, errors = _round_block(block.clone(), carry, name, dtype)
    assert stored.dtype == dtype
    found = block_values(stored, name)
    assert torch.equal(grid.given_back(grid.codes(found)), found)
    before, _ = _round_block(block.clone(), carry, name, dtype, trained=True)
    assert torch.equal(block_values(before, name), found)
    if name.startswith("q4"):  # steps of more bits are not far above those of bfloat16
        assert (before.float() - found).abs().max() > 2 * (stored.float() - found).abs().max()
    # The checkpoint is as near in its own dtype: it stores these values, as far as it can.
    torch.testing.assert_close(stored.float(), found, atol=0.01 * float(found.abs().max()), rtol=0)
    # Errors are those of what the file gives back: the first column's is the whole of it.
    torch.testing.assert_close(errors[:, 0] * carry[0, 0], block[:, 0] - found[:, 0], atol=1e-6 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", PLAIN_TYPES)
def test_what_is_computed_changes_less_than_with_nearest_values(name: str) -> None:
    weight = torch.randn(24, 128, generator=torch.Generator().manual_seed(5)).bfloat16()
    inputs = correlated(128, 3)
    stored = kept_values(weight, error_carry(inputs.T @ inputs), name, torch.bfloat16)
    before, after = block_values(weight, name), block_values(stored, name)
    assert loss(weight.float(), after, inputs) < 0.8 * loss(weight.float(), before, inputs)


@pytest.mark.parametrize("name", PLAIN_TYPES)
def test_zeros_and_constants_stay(name: str) -> None:
    weight = torch.zeros(4, 64)
    weight[1], weight[2] = 0.5, -0.5
    stored = kept_values(weight, torch.eye(64), name, torch.bfloat16)
    assert torch.isfinite(stored).all()
    torch.testing.assert_close(block_values(stored, name), weight, atol=5e-3, rtol=0)
