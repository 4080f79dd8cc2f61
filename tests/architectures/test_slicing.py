from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.architectures.binding import BoundTensor
from optimum_ishrink.architectures.expressions import parse_axes
from optimum_ishrink.architectures.slicing import axis_index, slice_tensor, sum_per_unit, zero_removed
from optimum_ishrink.surgery.units import merge_tensor

SIZES = {"heads": 4, "kv": 2, "head_dim": 3, "hidden": 5, "ffn": 6}


def test_each_packed_section_is_cut_by_its_size() -> None:
    (axis, _) = parse_axes("[heads*head_dim; kv*head_dim; kv*head_dim], hidden")
    index = axis_index(axis, SIZES, {"kv": [1], "heads": [2, 3]})
    assert index is not None
    assert index.tolist() == [6, 7, 8, 9, 10, 11, 15, 16, 17, 21, 22, 23]


def test_interleaved_sections_are_a_product_with_a_number() -> None:
    (axis,) = parse_axes("ffn*2")
    index = axis_index(axis, SIZES, {"ffn": [0, 3]})
    assert index is not None
    assert index.tolist() == [0, 1, 6, 7]


def test_an_axis_without_pruned_sizes_does_not_change() -> None:
    (axis,) = parse_axes("hidden")
    assert axis_index(axis, SIZES, {"ffn": [0]}) is None


@given(keep=st.sets(st.integers(0, 5), min_size=1).map(sorted))
def test_zeroing_and_slicing_retain_the_same_values(keep: list[int]) -> None:
    bound = BoundTensor("w", parse_axes("hidden, ffn"), 0)
    tensor = torch.arange(1, 31, dtype=torch.float32).view(5, 6)
    zeroed = zero_removed(tensor, bound, SIZES, {"ffn": keep})
    assert torch.equal(zeroed[:, keep], slice_tensor(tensor, bound, SIZES, {"ffn": keep}))
    assert zeroed.count_nonzero() == 5 * len(keep)
    assert tensor.count_nonzero() == 30  # the original is untouched


def test_sums_per_unit_count_every_weight_once() -> None:
    values = torch.arange(12 * 5, dtype=torch.float32).view(12, 5)
    bound = BoundTensor("w", parse_axes("heads*head_dim, hidden"), 0)
    per_group = sum_per_unit(values, bound, SIZES, "kv")
    assert per_group.tolist() == [values[:6].sum().item(), values[6:].sum().item()]
    assert sum_per_unit(values, bound, SIZES, "ffn").tolist() == [0] * 6


def test_sums_per_unit_add_up_packed_sections() -> None:
    bound = BoundTensor("w", parse_axes("[heads*head_dim; kv*head_dim; kv*head_dim]"), 0)
    assert sum_per_unit(torch.ones(12 + 6 + 6), bound, SIZES, "kv").tolist() == [12, 12]


def test_each_expert_has_separate_neurons() -> None:
    sizes = {**SIZES, "experts": 3}
    stacked = BoundTensor("w", parse_axes("experts, hidden, ffn*2"), 0)
    values = torch.arange(3 * 5 * 12, dtype=torch.float32).view(3, 5, 12)
    sums = sum_per_unit(values, stacked, sizes, "ffn").view(3, 6)
    assert torch.equal(sums, values.view(3, 5, 6, 2).sum(dim=(1, 3)))
    one = BoundTensor("w", parse_axes("ffn, hidden"), 0, expert=2)
    alone = sum_per_unit(torch.ones(6, 5), one, sizes, "ffn").view(3, 6)
    assert alone.sum() == 30
    assert alone[2].tolist() == [5] * 6
    keep = {"ffn": [0, 1, 8, 9, 16, 17]}
    cut = slice_tensor(values, stacked, sizes, keep)
    assert torch.equal(cut[1], values[1].view(5, 6, 2)[:, 2:4].flatten(1))
    assert (
        slice_tensor(torch.arange(30.0).view(6, 5), one, sizes, keep).tolist()
        == torch.arange(30.0).view(6, 5)[4:].tolist()
    )
    assert zero_removed(values, stacked, sizes, keep).count_nonzero() <= 3 * 5 * 4


def test_merged_heads_are_means() -> None:
    bound = BoundTensor("w", parse_axes("kv*head_dim, hidden"), 0)
    tensor = torch.randn(6, 5)
    merged = merge_tensor(tensor, bound, SIZES, {}, [(0, 1)])
    torch.testing.assert_close(merged, (tensor[:3] + tensor[3:]) / 2)
    other = BoundTensor("w", parse_axes("hidden, ffn"), 0)
    assert torch.equal(merge_tensor(torch.ones(5, 6), other, SIZES, {"ffn": [1]}, [(0, 1)]), torch.ones(5, 1))
