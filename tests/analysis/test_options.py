from __future__ import annotations

from typing import Any

import pytest

from optimum_ishrink.analysis.options import AnalysisOptions
from optimum_ishrink.errors import RequestError


def test_levels_are_sorted_and_hold_the_whole_model() -> None:
    assert AnalysisOptions(levels="50, 12.5,10").percentages == (0, 10, 12.5, 50)
    assert AnalysisOptions(levels=[10, 10.0]).shares == (0, 0.1)
    assert AnalysisOptions().percentages == tuple(range(0, 55, 5))
    assert AnalysisOptions(analysis_text="a.txt,self").analysis_text == ("a.txt", "self")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": "60%"}, "levels must be numbers such as 0,10,25, each at least 0 and at most 50, not '60%'"),
        ({"levels": "60"}, "levels must be numbers"),
        ({"levels": "-5"}, "levels must be numbers"),
        ({"levels": "ten"}, "levels must be numbers"),
        ({"levels": "0,,10"}, "levels must be numbers"),
        ({"levels": "nan"}, "levels must be numbers"),
        ({"levels": [True]}, "levels must be numbers"),
        ({"levels": [float("inf")]}, "levels must be numbers"),
        ({"levels": "0"}, "must hold one above 0"),
        ({"analysis_samples": 0}, "analysis_samples must be a whole number of at least 1, not 0"),
        ({"analysis_samples": True}, "analysis_samples must be"),
        ({"analysis_length": 1}, "analysis_length must be a whole number of at least 2, not 1"),
        ({"analysis_length": 2.5}, "analysis_length must be"),
        ({"max_divergence": 0}, "max_divergence must be a number above 0, not 0"),
        ({"max_divergence": float("nan")}, "max_divergence must be"),
        ({"max_divergence": "0.5"}, "max_divergence must be"),
        ({"analysis_text": ""}, "analysis_text must be a list of names"),
    ],
)
def test_values_that_are_not_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        AnalysisOptions(**values)
