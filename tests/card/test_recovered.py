"""What a card says of a recovery."""

from __future__ import annotations

from typing import Any

from optimum_ishrink.card.build import _recovered
from optimum_ishrink.report.measurement import Measurement
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.records import make_environment, make_recovery


def test_what_recovery_did_is_shown_by_figures_of_the_same_windows() -> None:
    def figure(value: float, n: int = 8, length: int = 64) -> Measurement:
        return Measurement("kl_divergence", "notes", value, None, n, {"length": length})

    record = make_recovery(before=(figure(0.5),))

    def rows(after: Measurement) -> Any:
        report = Report(None, ModelReport("small", 8, 16, (after,)), make_environment(), recovery=record)
        found = _recovered(report)
        assert found is not None
        return found["table"]

    assert "0.500" in rows(figure(0.2)) and "0.200" in rows(figure(0.2))
    assert rows(figure(0.9, n=64)) == rows(figure(0.9, length=1024)) == ""
    assert rows(figure(0.2).with_environment(make_environment(dtype="float64"))) == ""
