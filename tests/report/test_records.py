from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.analysis.record import Analysis, LayerSensitivity, SparsityLevel
from optimum_ishrink.core.json_files import read_json, write_json
from optimum_ishrink.errors import SourceError
from optimum_ishrink.report.measurement import Measurement
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.report import ModelReport, Report

PLAN = Plan(
    model="m",
    revision=None,
    model_type="llama",
    shape={"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 4},
    new_shape={"num_hidden_layers": 2, "num_key_value_heads": 1, "intermediate_size": 4},
    layers=(0, 2),
    units={"num_key_value_heads": ((0,), (1,)), "intermediate_size": ((0, 1, 2, 3), (0, 1, 2, 3))},
    config_changes={"head_dim": (None, 8), "num_hidden_layers": (3, 2)},
    num_parameters=100,
    new_num_parameters=85,
    settings={"seed": 0, "calibration": None},
)
REPORT = Report(
    ModelReport("base", 100, 200, (Measurement("perplexity", "t", 2.0, None, 1, {}),)),
    ModelReport("small", 85, 170, (Measurement("perplexity", "t", 3.0, 0.1, 4, {"length": 8}),)),
    {"device": "cpu"},
)


def test_a_plan_survives_a_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", PLAN.to_json())
    assert Plan.from_json(read_json(tmp_path / "plan.json")) == PLAN
    assert PLAN.removed_share == pytest.approx(0.15)


def test_a_report_survives_a_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", REPORT.to_json())
    assert Report.from_json(read_json(tmp_path / "report.json")) == REPORT
    write_json(tmp_path / "alone.json", Report(None, REPORT.shrunk, {}).to_json())
    assert Report.from_json(read_json(tmp_path / "alone.json")).base is None


KL = Measurement("kl_divergence", "t", 0.1, 0.01, 4, {"tokens": 28})
ANALYSIS = Analysis(
    model="m",
    revision=None,
    model_type="llama",
    num_parameters=100,
    settings={"levels": [0.0, 0.5], "calibration": {"sources": ["t"]}},
    levels=(SparsityLevel("mlp", 0.0, {}, 0, 0.0, ()), SparsityLevel("mlp", 0.5, {"x": 2}, 9, 0.09, (KL,))),
    sensitivity=(LayerSensitivity(0, KL, KL, KL),),
    notes=("a note",),
    max_divergence=0.5,
    advice="do",
    changes={"target": "params=-9%", "num_hidden_layers": None},
    finer_levels=(0.0, 1.5),
    command="ishrink shrink",
    environment={"device": "cpu"},
)


def test_an_analysis_survives_a_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "analysis.json", ANALYSIS.to_json())
    assert Analysis.from_json(read_json(tmp_path / "analysis.json")) == ANALYSIS
    assert ANALYSIS.levels[1].measured("kl_divergence") == KL
    assert list(ANALYSIS.kinds()) == ["mlp"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "this analysis has schema 99"),
        ({"schema": "1"}, "not an iShrink analysis"),
        ({"levelz": 1}, "unknown entry of the analysis 'levelz' .did you mean 'levels'"),
    ],
)
def test_what_is_no_analysis_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Analysis.from_json({**ANALYSIS.to_json(), **change})


def test_pairs_meet_by_metric_and_data() -> None:
    ((base, shrunk),) = REPORT.pairs("quality")
    assert base is not None
    assert (base.value, shrunk.value) == (2.0, 3.0)
    assert [pair[0] for pair in Report(None, REPORT.shrunk, {}).pairs("quality")] == [None]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_is_written_as_it_is_read(value: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "x.json", value)
        assert read_json(Path(folder) / "x.json") == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, this version reads up to 1"),
        ({"schema": None}, "no schema number"),
        ({"layres": 1}, "unknown entry of the plan 'layres' .did you mean 'layers'"),
    ],
)
def test_what_is_no_plan_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Plan.from_json({**PLAN.to_json(), **change})


def test_a_plan_with_a_missing_entry_is_refused() -> None:
    data = PLAN.to_json()
    del data["layers"]
    with pytest.raises(SourceError, match="lacks layers"):
        Plan.from_json(data)


def test_reading_what_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read_json(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SourceError, match="is not JSON"):
        read_json(tmp_path / "broken.json")
