from __future__ import annotations

from typing import Any

import pytest

from optimum_ishrink.analysis.request import AnalysisRequest
from optimum_ishrink.errors import RequestError


def test_levels_are_sorted_and_hold_the_whole_model() -> None:
    assert AnalysisRequest(levels="50, 12.5,10").levels == (0, 10, 12.5, 50)
    assert AnalysisRequest(levels=[10, 10.0]).shares == (0, 0.1)
    assert AnalysisRequest().levels == tuple(range(0, 55, 5))
    assert AnalysisRequest(text="a.txt,self").text == AnalysisRequest(text=["a.txt", "self"]).text == ("a.txt", "self")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": "60%"}, "level '60%' is not a percentage from 0 to 50; write levels such as 0,10,25"),
        ({"levels": "60"}, "level '60' is not"),
        ({"levels": "-5"}, "level '-5' is not"),
        ({"levels": "ten"}, "level 'ten' is not"),
        ({"levels": "0,,10"}, "level '' is not"),
        ({"levels": "nan"}, "level 'nan' is not"),
        ({"levels": [True]}, "level 'True' is not"),
        ({"levels": [float("inf")]}, "level 'inf' is not"),
        ({"levels": 10}, "must be a list of percentages"),
        ({"levels": "0"}, "must hold one above 0"),
        ({"samples": 0}, "analysis_samples must be a whole number of at least 1, not 0"),
        ({"samples": True}, "analysis_samples must be"),
        ({"length": 1}, "analysis_length must be a whole number of at least 2, not 1"),
        ({"length": 2.5}, "analysis_length must be"),
        ({"max_divergence": 0}, "max_divergence must be a number of nats per token above 0, not 0"),
        ({"max_divergence": float("nan")}, "max_divergence must be"),
        ({"max_divergence": "0.5"}, "max_divergence must be"),
        ({"text": ""}, "no text source"),
    ],
)
def test_values_that_are_not_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        AnalysisRequest(**values)
