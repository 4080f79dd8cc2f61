"""What a reader sees of speed: tables, and the picture of the card."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from optimum_ishrink.card.figures import draw_speed
from optimum_ishrink.evaluation.timing import compare_timings
from optimum_ishrink.report.measurement import Measurement
from optimum_ishrink.report.report import ModelReport, Report
from optimum_ishrink.report.tables import report_rows, speed_header, speed_rows
from tests.helpers.records import make_environment

SETTINGS = ("prompt 8, decode 2, batch 1", "prompt 16, decode 2, batch 1")


def timed(scale: float, versus: bool) -> tuple[Measurement, ...]:
    found = []
    for setting in SETTINGS:
        for metric in ("time_to_first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"):
            value = 0.1 / scale if metric.endswith("seconds") else 100 * scale
            facts = {"quartiles": [value * 0.9, value * 1.1], "samples": [value * 0.9, value, value * 1.1]}
            measurement = Measurement(metric, setting, value, None, 13, facts)
            (comparison,) = compare_timings([([0.1] * 13, [0.01, -0.01] * 6 + [0.0])])
            comparison = comparison.inverted if metric.endswith("_seconds") else comparison
            found.append(measurement.with_versus_base(comparison) if versus else measurement.with_self_spread(0.01))
    where = "fresh process, prompt 8, decode 2"
    found.append(Measurement("peak_memory_bytes", where, 3.5 * 2**20, None, 3, {"quartiles": [1.0, 2.0]}))
    found.append(Measurement("kv_cache_bytes_per_token", "float32 cache", 1024.0, None, 1))
    return tuple(found)


@pytest.fixture
def report() -> Report:
    base = ModelReport("base", 100, 200, speed=timed(1.0, versus=False))
    return Report(base, ModelReport("small", 85, 170, speed=timed(1.1, versus=True)), make_environment())


def test_a_row_has_ratio_interval_spread_and_verdict(report: Report) -> None:
    rows = {(row[0], row[1]): row[2:] for row in speed_rows(report)}
    decode = rows["decode, tokens/s", SETTINGS[0]]
    assert decode[1:4] == ("100.0 [90.0, 110.0]", "110.0 [99.0, 121.0]", "1.105")
    assert decode[4] == "[1.105, 1.105]"
    assert decode[5].startswith("± ")
    assert decode[6] == "faster"
    assert rows["time to first token, ms", SETTINGS[1]][3] == "0.905"
    peak = rows["peak resident memory, MiB", "fresh process, prompt 8, decode 2"]
    assert peak == ("3", "3.5", "3.5", "1.000", "", "", "")
    assert rows["KV cache, bytes/token", "float32 cache"][1] == "1,024"
    assert {len(row) for row in speed_rows(report)} == {len(speed_header(report))}
    assert report_rows(report)[4][5] == "1.105, faster"


def test_a_model_without_a_base_has_its_own_spread() -> None:
    alone = Report(None, ModelReport("small", 85, 170, speed=timed(1.0, versus=False)), make_environment())
    assert speed_header(alone)[3:] == ("model", "against itself")
    assert speed_rows(alone)[2][3:] == ("100.0 [90.0, 110.0]", "± 1.0%")
    assert speed_rows(alone)[-1][4] == ""


def test_a_base_without_a_figure_leaves_its_cells_empty(report: Report) -> None:
    assert report.base is not None
    partly = Report(ModelReport("base", 100, 200, speed=report.base.speed[:-1]), report.shrunk, make_environment())
    assert speed_rows(partly)[-1][3:] == ("", "1,024", "", "", "", "")


def test_every_setting_is_drawn_on_an_opaque_page(report: Report, tmp_path: Path) -> None:
    draw_speed(report, tmp_path / "two.png")
    picture = imread(tmp_path / "two.png")
    corners = [picture[y, x] for y in (0, -1) for x in (0, -1)]
    assert all(corner.tolist() == [1.0] * picture.shape[2] for corner in corners)
    assert report.base is not None
    one = ModelReport("base", 100, 200, speed=report.base.speed[:3])
    draw_speed(Report(one, report.shrunk, make_environment()), tmp_path / "one.png")
    assert imread(tmp_path / "one.png").shape[0] * 2 == pytest.approx(picture.shape[0], rel=0.02)
