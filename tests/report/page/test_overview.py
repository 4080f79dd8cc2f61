"""Several output folders in one table: comparable figures share a column, others do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optimum_ishrink.report.conditions import conditions
from optimum_ishrink.report.page.overview import build_overview, overview_rows
from optimum_ishrink.report.page.reading import NamedReport
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.named_reports import DECODE, MACHINE, kl, output, speed, text


def columns(*reports: NamedReport) -> list[tuple[str, str, dict[str, float]]]:
    found = build_overview(reports).columns
    return [(each.metric, each.conditions, {name: cell.value for name, cell in each.cells.items()}) for each in found]


def test_equal_conditions_share_a_column_and_unmeasured_figures_are_missing() -> None:
    one = output("a", 900, kl(0.1), timed=(10, 12))
    two = output("b", 800, kl(0.2))
    (divergence, decode) = columns(one, two)
    assert divergence == ("kl_divergence", "", {"org/base": 0.0, "a": 0.1, "b": 0.2})
    assert decode == (DECODE, "", {"org/base": 10.0, "a": 12.0})
    overview = build_overview([one, two])
    assert overview.notes == ()
    assert [model.label for model in overview.models] == ["org/base", "a", "b"]
    assert overview.columns[0].cells["org/base"].by_definition
    assert overview.columns[1].cells["a"].ratio == 1.2
    header, rows = overview_rows(overview)
    assert header == ("", "on", "org/base", "a", "b")
    assert rows[-1][2:] == ("10.0 [9.0, 11.0]", "12.0 [10.8, 13.2] x1.20", "not measured")


@pytest.mark.parametrize(
    ("other", "description"),
    [
        ({"length": 1024, "tokens": 7}, "length 1024"),
        ({"fingerprint": "cd" * 16}, "text cdcdcdcd"),
        ({"n": 8}, "n 8"),
        ({"num_fewshot": 5}, "num fewshot 5"),
        ({"tokens": 90}, "tokens 90"),
    ],
)
def test_figures_of_different_settings_are_separated(other: dict[str, Any], description: str) -> None:
    overview = build_overview([output("a", 900, kl(0.1)), output("b", 800, kl(0.2, **other))])
    assert [sorted(each.cells) for each in overview.columns] == [["a", "org/base"], ["b", "org/base"]]
    assert overview.columns[1].conditions == description
    (note,) = overview.notes
    assert note.startswith(
        "notes.txt: measured under different conditions, so the figures are in separate columns (KL"
    )
    assert f"b: {description}." in note


def test_another_base_another_dtype_and_another_machine_are_separated() -> None:
    first = output("a", 900, kl(0.1), timed=(10, 12))
    other_base = output("b", 800, kl(0.2), base="org/other")
    assert len(columns(first, other_base)) == 3
    assert any("2 bases (org/base, org/other)" in note for note in build_overview([first, other_base]).notes)
    both = (text("perplexity", 9.0), *kl(0.2))
    assert [each[0] for each in columns(output("a", 900, both), output("b", 1, both, base="org/other"))] == [
        "perplexity",
        "kl_divergence",
        "kl_divergence",
    ]
    assert len(columns(first, output("b", 800, kl(0.2), dtype="float32"))) == 3
    for machine in ({"cpu": "B"}, {"threads": 1}, {"versions": {"torch": "3", "numpy": "1"}}):
        found = columns(first, output("b", 800, kl(0.2), timed=(20, 30), **machine))
        assert [each[0] for each in found] == ["kl_divergence", DECODE, DECODE]
    # Settings of precision, and versions of libraries that do not compute, separate nothing.
    other_numpy = output("b", 800, kl(0.2), timed=(20, 30), versions={"torch": "2", "numpy": "9"})
    assert [each[0] for each in columns(first, other_numpy)] == ["kl_divergence", DECODE]
    more = NamedReport(
        "c",
        Report(
            None, ModelReport("c", 1, 2, (), (speed(9.0, rounds=99, self_spread=0.3, libraries_bytes=7),)), MACHINE
        ),
    )
    assert [each[0] for each in columns(first, more)] == ["kl_divergence", DECODE]


def test_a_base_with_several_sessions_and_differing_figures() -> None:
    was, now = (text("perplexity", 9.0),), (text("perplexity", 9.5),)
    measured = [
        output("a", 900, was, timed=(10, 12), base_quality=was),
        output("b", 800, was, timed=(14, 16), base_quality=now),
    ]
    overview = build_overview(measured)
    decode = overview.columns[-1].cells["org/base"]
    assert (decode.value, decode.text) == (12.0, "10.0 to 14.0 in 2 sessions")
    assert "perplexity (lower is better) of org/base on notes.txt differs between reports (9, 9.5)" in str(
        overview.notes
    )


def test_bases_and_outputs_have_unique_names() -> None:
    measured = [output("a", 900, base="a"), output("a (base)", 900, base="a (base)")]
    labels = [model.label for model in build_overview(measured).models]
    assert len(set(labels)) == len(labels) == 4
    same_name = [
        output("x", 1, base="m"),
        NamedReport("y", Report(ModelReport("m", 7, 14), ModelReport("y", 1, 2), MACHINE)),
    ]
    labels = [model.label for model in build_overview(same_name).models]
    assert len(set(labels)) == 4


def test_a_figure_added_later_has_its_own_conditions() -> None:
    report = output("small", 900, (text("perplexity", 9.0),), (1.0, 2.0)).report
    here = speed(2.0)
    there = speed(2.0).with_environment(replace(MACHINE, cpu="B"))
    assert dict(conditions(here, "speed", report))["cpu"] == "A"
    assert dict(conditions(there, "speed", report))["cpu"] == "B"
    added = text("perplexity", 9.0).with_environment(replace(MACHINE, dtype="float32"))
    assert dict(conditions(added, "quality", report))["dtype"] == "float32"
