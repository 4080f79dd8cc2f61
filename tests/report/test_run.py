"""Plan and report of an output folder, and those of schema 1: `data/schema-1` was written when it was the only one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.card.build import build_card
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import SourceError
from optimum_ishrink.report.measurement import Measurement
from optimum_ishrink.report.origin import Origin
from optimum_ishrink.report.plan import CalibrationRecord, Choice, Plan
from optimum_ishrink.report.report import Report
from optimum_ishrink.report.run import Run, has_run, read_run
from tests.helpers.card_folder import make_folder, make_plan, make_report

DATA = Path(__file__).parent / "data"
CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(DATA / "schema-1", tmp_path / "small")


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps({**read_json(path), **entries}))


def test_a_run_survives_a_round_trip(tmp_path: Path) -> None:
    run = Run(make_plan(), make_report())
    run.write(tmp_path)
    assert Run.read(tmp_path) == run
    assert has_run(tmp_path) and read_run(tmp_path) == (run.plan, run.report)
    assert (
        read_json(tmp_path / "ishrink_plan.json")["schema"]
        == read_json(tmp_path / "ishrink_report.json")["schema"]
        == 2
    )


def test_a_folder_without_a_plan_and_one_without_a_report(tmp_path: Path) -> None:
    Run(None, make_report()).write(tmp_path)
    assert Run.read(tmp_path).plan is None and not has_run(tmp_path)
    folder = make_folder(tmp_path / "small")
    (folder / "ishrink_report.json").unlink()
    assert read_run(folder) == (make_plan(), None)
    assert read_run(tmp_path / "nowhere") == (None, None)
    with pytest.raises(SourceError, match="ishrink_report.json does not exist"):
        Run.read(folder)


def test_a_run_of_schema_1_is_read_completely(old: Path) -> None:
    settings = read_json(old / "ishrink_plan.json")["settings"]
    plan, report = read_run(old)
    assert plan is not None and report is not None
    calibration = CalibrationRecord(("words.txt",), ("05504e13e1e71119",), 8, 16, 8, 2)
    assert plan.choice == Choice("fisher", "block-influence", "one-shot", 0, calibration)
    assert (plan.layers, plan.units["num_key_value_heads"]) == ((0, 1), ((0, 3), (1, 3)))
    assert report.origin == Origin("org/base", command=settings["origin"]["command"])
    assert report.compensation is not None and report.recovery is not None
    assert report.compensation.method == "ridge"
    assert [repair.new_error for repair in report.compensation.repairs] == [
        each["new_error"] for each in settings["compensation"]["repairs"]
    ]
    assert report.recovery.held_out_loss == settings["recovery"]["held_out_loss"]
    assert report.recovery.held_out_loss_solved is None
    assert report.recovery.held_out_losses[0] == tuple(settings["recovery"]["held_out_losses"][0])
    assert report.recovery.before == tuple(Measurement(**each) for each in settings["recovery"]["before"])
    assert Plan.from_json(read_json(old / "ishrink_plan.json")) == plan


def test_a_run_of_schema_1_has_the_same_card_after_migration(old: Path) -> None:
    card = (old / "README.md").read_text(encoding="utf-8")
    build_card(old)
    assert (old / "README.md").read_text(encoding="utf-8") == card
    run = Run.read(old)
    run.write(old)
    assert read_json(old / "ishrink_plan.json")["schema"] == 2
    assert Run.read(old) == run
    build_card(old)
    assert (old / "README.md").read_text(encoding="utf-8") == card


def test_entries_that_early_plans_lack(old: Path) -> None:
    settings = read_json(old / "ishrink_plan.json")["settings"]
    calibration = {key: value for key, value in settings["calibration"].items() if key != "importance_samples"}
    recovery = {key: value for key, value in settings["recovery"].items() if key != "helped"}
    change(old / "ishrink_plan.json", settings={"seed": 3, "calibration": calibration, "recovery": recovery})
    run = Run.read(old)
    assert run.plan is not None and run.report.recovery is not None
    assert (run.plan.choice.importance, run.plan.choice.seed) == (None, 3)
    assert run.plan.choice.calibration is not None and run.plan.choice.calibration.importance_samples == 8
    assert run.report.recovery.helped
    assert run.report.origin is run.report.compensation is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (3, "ishrink_plan.json: this plan is damaged: settings is not an object"),
        ({"calibration": {"sources": []}}, "this plan lacks choice.calibration.batch_size"),
        ({"recovery": {"loss": "kl"}}, "ishrink_report.json: this report lacks recovery.best_step"),
        ({"origin": 3}, "this report is damaged: origin is 3, not an object"),
    ],
)
def test_a_damaged_plan_of_schema_1(old: Path, settings: object, message: str) -> None:
    change(old / "ishrink_plan.json", settings=settings)
    with pytest.raises(SourceError, match=message):
        Run.read(old)


def test_a_report_of_schema_1_is_read_and_migrated() -> None:
    data = read_json(DATA / "schema-1-report.json")
    assert data["schema"] == 1
    report = Report.from_json(data)
    assert (report.comparisons, report.samples, report.failures, report.recovery) == ((), (), (), None)
    assert [each.value for each in report.shrunk.quality] == [each["value"] for each in data["shrunk"]["quality"]]
    assert report.environment.governor is None
    written = report.to_json()
    assert written["schema"] == 2
    assert Report.from_json(written) == report


@pytest.mark.parametrize("card", sorted(CARDS.iterdir()), ids=lambda card: card.name)
def test_the_committed_reports_survive_a_round_trip(card: Path) -> None:
    data = read_json(card / "ishrink_report.json")
    report = Report.from_json(data)
    added = {"origin": None, "compensation": None, "recovery": None, "budget": None}
    # Reports of older versions lack what was added since.
    assert report.to_json() == {**added, **data, "environment": {"runtime": None, **data["environment"]}}
    compared = [each.versus_base for each in report.shrunk.speed if each.versus_base is not None]
    assert compared and all(each.interval[0] <= each.ratio <= each.interval[1] for each in compared)
    for _, shrunk in report.pairs("speed"):
        assert shrunk.quartiles is None or len(shrunk.samples) > 1


def test_entries_of_the_report_win_over_those_of_a_plan_of_schema_1(old: Path) -> None:
    origin = Origin("org/other")
    report = replace(Run.read(old).report, origin=origin)
    (old / "ishrink_report.json").write_text(json.dumps(report.to_json()))
    assert Run.read(old).report.origin == origin
