"""Which windows are held out together."""

from __future__ import annotations

import pytest
import torch

from optimum_ishrink.errors import DataError
from optimum_ishrink.surgery.folds import check_windows, make_folds


def test_each_kind_of_text_is_a_fold() -> None:
    kinds = torch.tensor([0, 1, 2, 0, 1, 2])
    assert [rows.tolist() for rows in make_folds(6, kinds)] == [[0, 3], [1, 4], [2, 5]]
    one = [[0, 4], [1, 5], [2], [3]]
    assert [rows.tolist() for rows in make_folds(6, None)] == one
    assert [rows.tolist() for rows in make_folds(6, torch.full((6,), 3))] == one
    assert [rows.tolist() for rows in make_folds(6, torch.arange(6))] == [[0, 4], [1, 5], [2], [3]]


def test_too_few_windows_name_the_options() -> None:
    check_windows(4)
    with pytest.raises(DataError, match="at least 4 calibration windows, not 3; raise samples, or turn it off with x"):
        check_windows(3, samples="samples", off="x")
