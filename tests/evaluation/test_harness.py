"""Figures of lm-eval that are no numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from optimum_ishrink.errors import NotFiniteError
from optimum_ishrink.evaluation import harness


def result(value: float, stderr: float) -> dict[str, Any]:
    return {
        "results": {"t": {"alias": "t", "acc,none": value, "acc_stderr,none": stderr, "sample_len": 2}},
        "n-samples": {"t": {"effective": 2}},
        "n-shot": {"t": 0},
        "versions": {"t": 1},
        "higher_is_better": {"t": {"acc": True}},
        "samples": {"t": []},
    }


def test_a_standard_error_that_is_no_number_is_none() -> None:
    (found,) = harness.harness_measurements(result(0.5, math.nan))
    assert (found.value, found.stderr) == (0.5, None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_no_number_is_an_error(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval

    monkeypatch.setattr(lm_eval, "evaluate", lambda **_: result(value, 0.1))
    loaded = harness.LoadedTasks(harness.TaskRequest("t", None), {"t": None}, {})
    with pytest.raises(NotFiniteError, match=f"t gives {value} as its acc, which is no figure"):
        harness.run_task(loaded, "t", None)
