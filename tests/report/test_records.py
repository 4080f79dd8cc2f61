from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ishrink.core.json_codec import from_plain, to_plain
from optimum_ishrink.core.json_files import read_json, write_json
from optimum_ishrink.errors import SourceError
from optimum_ishrink.report.analysis import Analysis, LayerSensitivity, SparsityLevel
from optimum_ishrink.report.compensation import CompensationRecord, ProjectionRepair
from optimum_ishrink.report.environment import Environment
from optimum_ishrink.report.measurement import (
    Comparison,
    Failure,
    Measurement,
    Sample,
    SpeedComparison,
    median_measurement,
)
from optimum_ishrink.report.origin import Origin
from optimum_ishrink.report.plan import CalibrationRecord, Choice, Plan
from optimum_ishrink.report.recovery import RecoveryRecord
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.records import compare_speed, make_environment, make_recovery

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
    choice=Choice("fisher", "loss", "greedy", 3, CalibrationRecord(("self", "t.txt"), (None, "ab"), 8, 16, 4, 2)),
    merges=(((0, 1),), ((0, 1),)),
    inexact=("why",),
)
RECOVERY = make_recovery(before=(Measurement("kl_divergence", "t", 0.1, None, 4),))
REPORT = Report(
    ModelReport("base", 100, 200, (Measurement("perplexity", "t", 2.0, None, 4, {"length": 8}),)),
    ModelReport("small", 85, 170, (Measurement("perplexity", "t", 3.0, 0.1, 4, {"length": 8}),)),
    make_environment(runtime="a build", cores=2),
    (Comparison("acc", "t", 4, None, None, None, 0.1, 0.0, 0.2, True, 1, 2, 0.5, "worse", {"seed": 0}),),
    (Sample("p", None, "x", {"max_new_tokens": 3}),),
    (Failure("t", "no data"),),
    Origin("org/base", "other", {"license_name": "x"}, ("en",), ("a note",), "ishrink shrink"),
    CompensationRecord("ridge", (ProjectionRepair("w", 0.1, 0.5, 0.4), ProjectionRepair("v", None, 0.2, 0.2))),
    RECOVERY,
)


def test_a_plan_survives_a_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", PLAN.to_json())
    assert Plan.from_json(read_json(tmp_path / "plan.json")) == PLAN
    assert PLAN.removed_share == pytest.approx(0.15)


def test_a_report_survives_a_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", REPORT.to_json())
    assert Report.from_json(read_json(tmp_path / "report.json")) == REPORT
    write_json(tmp_path / "alone.json", Report(None, REPORT.shrunk, make_environment()).to_json())
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
    environment=make_environment(),
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
def test_a_damaged_analysis_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Analysis.from_json({**ANALYSIS.to_json(), **change})


@pytest.mark.parametrize("change", [{"n": 8}, {"settings": {"length": 16}}])
def test_what_was_measured_otherwise_is_nothing_to_compare_with(change: dict[str, Any]) -> None:
    base = replace(REPORT.shrunk.quality[0], **change)
    report = replace(REPORT, base=ModelReport("base", 100, 200, (base,)))
    assert list(report.pairs("quality")) == [(None, REPORT.shrunk.quality[0])]


def test_figures_keep_where_they_were_measured() -> None:
    speed = Measurement("decode_tokens_per_second", "prompt 8", 9.0, None, 4)
    old, new = make_environment(cores=2), make_environment(cores=64)
    base = ModelReport("base", 100, 200, (), (speed,)).measured_in(old)
    assert base.speed[0].environment == old and base.measured_in(new) == base
    report = Report(base, ModelReport("small", 85, 170, (), (speed,)), new)
    assert [pair[0] for pair in report.pairs("speed")] == [None]
    assert [pair[0] for pair in replace(report, environment=old).pairs("speed")] == [base.speed[0]]


def test_measurements_are_paired_by_metric_and_data() -> None:
    ((base, shrunk),) = REPORT.pairs("quality")
    assert base is not None
    assert (base.value, shrunk.value) == (2.0, 3.0)
    assert [pair[0] for pair in Report(None, REPORT.shrunk, make_environment()).pairs("quality")] == [None]


RECORDS = (
    CalibrationRecord,
    Choice,
    CompensationRecord,
    Comparison,
    Environment,
    Failure,
    Measurement,
    ModelReport,
    Origin,
    Plan,
    ProjectionRepair,
    RecoveryRecord,
    Report,
    Sample,
    SpeedComparison,
)
st.register_type_strategy(Mapping, st.just({}))
st.register_type_strategy(float, st.floats(allow_nan=False))


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_survives_json(kind: Any) -> None:
    @given(st.from_type(kind))
    @settings(max_examples=20)
    def check(record: Any) -> None:
        assert from_plain(kind, json.loads(json.dumps(to_plain(record))), kind="record") == record

    check()


def test_properties_of_a_measurement() -> None:
    timed = median_measurement("x_seconds", "t", [1.0, 2.0, 3.0], {"rounds": 3, "batch_size": 1})
    assert (timed.quartiles, timed.samples, timed.statistic) == ((1.5, 2.5), (1.0, 2.0, 3.0), "median")
    assert timed.conditions == {"batch_size": 1}
    compared, there = compare_speed(1.1), make_environment(threads=9)
    more = timed.with_versus_base(compared).with_environment(there).with_self_spread(0.1)
    assert (more.versus_base, more.environment, more.self_spread) == (compared, there, 0.1)
    assert json.loads(json.dumps(to_plain(more)))["settings"]["versus_base"]["interval"] == list(compared.interval)
    task = {"num_fewshot": 0, "task_version": "1", "filter": "none", "hub_dataset": "a/b", "runtime": "llama.cpp"}
    asked = Measurement("acc", "t", 0.5, None, 4, {**task, "tokens": 5, "predicted": 6, "candidates": 7})
    assert (asked.num_fewshot, asked.task_version, asked.filter) == (0, "1", "none")
    assert (asked.hub_dataset, asked.runtime) == ("a/b", "llama.cpp")
    assert (asked.tokens, asked.predicted, asked.candidates) == (5, 6, 7)
    plain = Measurement("acc", "t", 0.5, None, 4)
    assert (plain.quartiles, plain.samples, plain.versus_base, plain.environment) == (None, (), None, None)
    assert {plain.statistic, plain.num_fewshot, plain.runtime, plain.self_spread, plain.tokens} == {None}


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("versus_base", {"ratio": 1.0}, "this speed comparison lacks adjusted_p_value, coverage"),
        ("versus_base", 3, "this speed comparison is damaged: it is 3, not an object"),
        ("environment", {"devise": "cpu"}, "unknown entry of the environment 'devise' .did you mean 'device'"),
    ],
)
def test_damaged_settings_are_refused_when_read(name: str, found: object, message: str) -> None:
    measurement = Measurement("x", "t", 1.0, None, 1, {name: found})
    with pytest.raises(SourceError, match=message):
        getattr(measurement, name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_json_survives_a_round_trip(value: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "x.json", value)
        assert read_json(Path(folder) / "x.json") == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "schema 3, this version reads up to 2"),
        ({"schema": None}, "no schema number"),
        ({"settings": {}}, "unknown entry of the plan 'settings'"),
        ({"choice": None}, "this plan is damaged: choice is None, not an object"),
        ({"layres": 1}, "unknown entry of the plan 'layres' .did you mean 'layers'"),
    ],
)
def test_a_damaged_plan_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Plan.from_json({**PLAN.to_json(), **change})


def test_a_plan_with_a_missing_entry_is_refused() -> None:
    data = PLAN.to_json()
    del data["layers"]
    with pytest.raises(SourceError, match="lacks layers"):
        Plan.from_json(data)


def test_a_missing_and_a_broken_json_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read_json(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(SourceError, match="is not JSON"):
        read_json(tmp_path / "broken.json")
