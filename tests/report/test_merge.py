from __future__ import annotations

from optimum_ishrink.report.measurement import Failure, Measurement
from optimum_ishrink.report.merge import merge_reports
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.records import make_environment


def report(*failures: str, **figures: float) -> Report:
    quality = tuple(Measurement("acc", name, value, None, 4) for name, value in figures.items())
    failed = tuple(Failure(name, f"no {name}") for name in failures)
    return Report(None, ModelReport("small", 8, 16, quality), make_environment(), failures=failed)


def test_a_failure_remains_until_what_failed_is_measured() -> None:
    old = report("quiz", "exam", maths=0.5)
    assert merge_reports(old, report(quiz=0.4)).failures == report("exam").failures
    # Of a figure that was measured before, a new failure is said, and the old figure remains.
    failed = merge_reports(report(maths=0.5), report("maths"))
    assert failed.failures == report("maths").failures
    assert failed.shrunk.quality[0].value == 0.5
