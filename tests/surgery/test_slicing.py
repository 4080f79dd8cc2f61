from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.architectures.expressions import parse_axes
from optimum_ishrink.architectures.spec import BoundTensor
from optimum_ishrink.surgery.slicing import axis_index, slice_tensor, sum_per_unit, zero_removed

SIZES = {"heads": 4, "kv": 2, "head_dim": 3, "hidden": 5, "ffn": 6}


def test_packed_sections_are_cut_each_by_its_own_size() -> None:
    (axis, _) = parse_axes("[heads*head_dim; kv*head_dim; kv*head_dim], hidden")
    index = axis_index(axis, SIZES, {"kv": [1], "heads": [2, 3]})
    assert index is not None
    assert index.tolist() == [6, 7, 8, 9, 10, 11, 15, 16, 17, 21, 22, 23]


def test_interleaved_sections_are_a_product_with_a_number() -> None:
    (axis,) = parse_axes("ffn*2")
    index = axis_index(axis, SIZES, {"ffn": [0, 3]})
    assert index is not None
    assert index.tolist() == [0, 1, 6, 7]


def test_an_axis_that_counts_nothing_pruned_stays_whole() -> None:
    (axis,) = parse_axes("hidden")
    assert axis_index(axis, SIZES, {"ffn": [0]}) is None


@given(keep=st.sets(st.integers(0, 5), min_size=1).map(sorted))
def test_zeroing_keeps_exactly_what_slicing_keeps(keep: list[int]) -> None:
    bound = BoundTensor("w", parse_axes("hidden, ffn"), 0)
    tensor = torch.arange(1, 31, dtype=torch.float32).view(5, 6)
    zeroed = zero_removed(tensor, bound, SIZES, {"ffn": keep})
    assert torch.equal(zeroed[:, keep], slice_tensor(tensor, bound, SIZES, {"ffn": keep}))
    assert zeroed.count_nonzero() == 5 * len(keep)
    assert tensor.count_nonzero() == 30  # the original is untouched


def test_sums_per_unit_count_every_weight_once() -> None:
    values = torch.arange(12 * 5, dtype=torch.float32).view(12, 5)
    axes = parse_axes("heads*head_dim, hidden")
    per_group = sum_per_unit(values, axes, SIZES, "kv")
    assert per_group.tolist() == [values[:6].sum().item(), values[6:].sum().item()]
    assert sum_per_unit(values, axes, SIZES, "ffn").tolist() == [0] * 6


def test_sums_per_unit_add_up_packed_sections() -> None:
    values = torch.ones(12 + 6 + 6)
    axes = parse_axes("[heads*head_dim; kv*head_dim; kv*head_dim]")
    assert sum_per_unit(values, axes, SIZES, "kv").tolist() == [12, 12]
