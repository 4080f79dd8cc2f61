from __future__ import annotations

from dataclasses import replace

import pytest

from optimum_ishrink.report.search import Answer
from optimum_ishrink.search.advice import advise
from tests.report.test_budget import found, record

PLAIN = ((70e6, 0.5), (80e6, 0.2), (100e6, 0.1))


@pytest.mark.parametrize(
    ("expected", "best", "words"),
    [
        (((50e6, 0.9), (72e6, 0.3), (82e6, 0.15), (105e6, 0.04)), None, "Above 105.0 MB, quantise alone"),
        (((50e6, 0.9), (72e6, 0.3), (82e6, 0.199), (105e6, 0.04)), None, "Above 72.0 MB, quantise alone"),
        (((50e6, 0.9), (72e6, 0.499), (82e6, 0.1)), None, "Down to 70.0 MB, quantise alone"),
        (((50e6, 0.9), (72e6, 0.3), (82e6, 0.15)), found("mixed", 80e6, 0.1, unpruned=True), "Above 72.0 MB"),
        (((50e6, 0.9), (72e6, 0.3)), found("mixed", 71e6, 0.1, unpruned=True), "Down to 70.0 MB"),
    ],
)
def test_pruning_is_advised_up_to_where_it_pays_at_every_size(
    expected: tuple[tuple[float, float], ...], best: object, words: str
) -> None:
    models = () if best is None else (best,)
    answers = () if best is None else (Answer("bytes=80MB", "mixed", ()),)
    of = replace(record(models), expected_front=expected, unpruned_front=PLAIN, answers=answers)  # type: ignore[arg-type]
    assert any(line.startswith(words) for line in advise(of))
