"""Several output folders in one page: comparable figures share a column, others do not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import OutputError, RequestError, SourceError
from optimum_ishrink.report.files import REPORT_FILE
from optimum_ishrink.report.measurement import Measurement
from optimum_ishrink.report.page.conditions import conditions
from optimum_ishrink.report.page.overview import build_overview, lower_is_better, overview_rows
from optimum_ishrink.report.page.pareto import pareto_optimal, plots
from optimum_ishrink.report.page.reading import NamedReport, read_reports
from optimum_ishrink.report.page.render import render_page, write_page
from optimum_ishrink.report.page.svg import HEIGHT, WIDTH, draw, ticks
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.records import make_environment

MACHINE = make_environment(cpu="A", versions={"torch": "2", "numpy": "1"})
DECODE = "decode_tokens_per_second"


def text(metric: str, value: float, **settings: Any) -> Measurement:
    settings = {"length": 512, "seed": 0, "fingerprint": "ab" * 16, "tokens": 100, **settings}
    return Measurement(metric, "notes.txt", value, 0.01, settings.pop("n", 32), settings)


def speed(value: float, rounds: int = 11, **settings: Any) -> Measurement:
    how = {"prompt_length": 128, "rounds": rounds, "quartiles": [value * 0.9, value * 1.1], "samples": [value]}
    return Measurement(DECODE, "prompt 128", value, None, rounds, {**how, **settings})


def output(
    label: str,
    params: int,
    quality: tuple[Measurement, ...] = (),
    timed: tuple[float, float] | None = None,
    *,
    base: str | None = "org/base",
    base_quality: tuple[Measurement, ...] = (),
    **machine: Any,
) -> NamedReport:
    old = None
    if base is not None:
        old = ModelReport(base, 1000, 2000, base_quality, (speed(timed[0]),) if timed else ())
    new = ModelReport(label, params, 2 * params, quality, (speed(timed[1]),) if timed else ())
    return NamedReport(label, Report(old, new, replace(MACHINE, **machine)))


def kl(value: float, **settings: Any) -> tuple[Measurement, ...]:
    return (text("kl_divergence", value, **settings),)


def columns(*reports: NamedReport) -> list[tuple[str, str, dict[str, float]]]:
    found = build_overview(reports).columns
    return [(each.metric, each.conditions, {name: cell.value for name, cell in each.cells.items()}) for each in found]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_pareto_optimal_points_are_those_that_no_other_beats(points: list[tuple[int, int]]) -> None:
    best = pareto_optimal(points)
    front = {point for point, optimal in zip(points, best) if optimal}
    assert len(best) == len(points) and bool(front) == bool(points)
    for point, optimal in zip(points, best):
        weakly = [each for each in front if each[0] <= point[0] and each[1] <= point[1]]
        assert weakly, "every point is matched or beaten by one of the front"
        assert optimal == (weakly == [point])


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
        "c", Report(None, ModelReport("c", 1, 2, (), (speed(9.0, rounds=99, self_spread=0.3),)), MACHINE)
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


def test_plots_mark_pareto_optimal_models() -> None:
    measured = [
        output("good", 800, kl(0.1), timed=(10, 13)),
        output("worse", 900, kl(0.2), timed=(20, 24)),
        output("tiny", 500, kl(0.9)),
        output("alone", 400, kl(0.5, length=99), timed=(10, 50)),
        output("no base", 300, (), base=None),
    ]
    size, decode = plots(build_overview(measured))
    assert {point.label: point.optimal for point in size.points} == {
        "org/base": True,
        "good": True,
        "worse": False,
        "tiny": True,
    }
    assert sum(size.missing.values(), ()) == ("alone", "no base")
    assert {point.label: point.x for point in decode.points} == {"org/base": 1.0, "good": 1.3, "worse": 1.2}
    assert [point.label for point in decode.points if point.optimal] == ["org/base", "good"]
    assert "no decode speed under these conditions" in decode.missing
    with pytest.raises(RequestError, match="unknown metric 'kl'.*allowed: kl_divergence"):
        plots(build_overview(measured), "kl")
    with pytest.raises(RequestError, match="no quality was measured"):
        plots(build_overview([output("a", 1)]), "perplexity")
    assert plots(build_overview([output("a", 1)])) == ()


def test_the_metric_can_be_chosen_and_its_direction_is_known() -> None:
    accuracy = Measurement("acc", "arc", 0.5, 0.02, 100, {"num_fewshot": 0})
    better = Measurement("acc", "arc", 0.6, 0.02, 100, {"num_fewshot": 0})
    measured = [output("a", 900, (*kl(0.1), accuracy)), output("b", 950, (*kl(0.2), better))]
    (plot,) = plots(build_overview(measured), "acc")
    assert not plot.y_lower_is_better
    assert [point.label for point in plot.points if point.optimal] == ["a", "b"]
    assert plot.missing == {"no acc under these conditions": ("org/base",)}
    lower = ["perplexity", "word_perplexity", "kl_divergence", "bits_per_byte", "time_to_first_token_seconds"]
    assert all(map(lower_is_better, lower))
    assert not any(map(lower_is_better, ["acc_norm", "exact_match", "prefill_tokens_per_second", "top1_agreement"]))


def test_models_with_fewer_tokens_are_compared_by_bits_per_byte() -> None:
    def carried(value: float, tokens: int) -> tuple[Measurement, ...]:
        return kl(value, tokens=tokens, carried=True, shared=tokens / 200)

    def bits(value: float, tokens: int) -> tuple[Measurement, ...]:
        return tuple(text(metric, value, tokens=tokens, bytes=400) for metric in ("bits_per_byte", "tokens_per_byte"))

    measured = [
        output("same", 900, (*kl(0.1), *bits(1.2, 100)), base_quality=bits(1.0, 100)),
        output("fewer", 800, (*carried(0.2, 110), *bits(1.3, 110)), base_quality=bits(1.0, 100)),
        output("fewest", 700, (*carried(0.3, 120), *bits(1.4, 120)), base_quality=bits(1.0, 100)),
    ]
    overview = build_overview(measured)
    found = {(each.metric, each.conditions): set(each.cells) for each in overview.columns}
    every = {"org/base", "same", "fewer", "fewest"}
    assert found == {
        ("kl_divergence", "the same tokens"): {"org/base", "same"},
        ("kl_divergence", "carried to fewer tokens"): {"org/base", "fewer", "fewest"},
        ("bits_per_byte", ""): every,
        ("tokens_per_byte", ""): every,
    }
    (plot,) = plots(overview)
    assert plot.y_title == "bits per byte (lower is better)"
    assert {point.label for point in plot.points} == every
    assert plots(build_overview(measured[1:]))[0].y_title.startswith("KL divergence")
    assert lower_is_better("tokens_per_byte")


def test_nan_is_not_plotted() -> None:
    nan = [output("a", 900, kl(float("nan"))), output("b", 900, kl(0.3))]
    (plot,) = plots(build_overview(nan))
    assert plot.missing == {"value is NaN or inf": ("a",)}


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_round_and_span_the_range(low: float, width: float) -> None:
    if 0 < width < 1e-6 * max(1.0, abs(low)):
        width = 0.0
    found = ticks(low, low + width)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step and found[-1] >= low + width - 1e-6 * step
    assert 2 <= len(found) <= 10
    digits = f"{step:.6e}".split("e")[0].rstrip("0").rstrip(".")
    assert digits in ("1", "2", "5")


def test_labels_stay_in_the_plot_and_do_not_overlap() -> None:
    measured = [output(f"a-model-with-a-long-name-{i}", 800 + i, kl(0.1 + i / 1000)) for i in range(5)]
    (plot,) = plots(build_overview(measured))
    drawing = draw(plot)
    for mark in drawing.marks:
        assert 0 <= mark.x <= WIDTH and 0 <= mark.y <= HEIGHT
        assert mark.low is not None or mark.point.is_base
    assert len({(round(mark.label_y / 4), mark.anchor) for mark in drawing.marks}) == len(drawing.marks)


class Strict(HTMLParser):
    """Checks that every element is closed, and collects what the page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "b", "object"):
            self.foreign.append(tag)
        self.foreign += [f"{key}={value}" for key, value in attrs if key in ("src", "href", "onclick", "srcset")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_escaped_and_self_contained() -> None:
    evil = '<b onclick="x">&"\'</b><script>alert(1)</script>'
    measured = [
        output(evil, 900, kl(0.1), timed=(10, 12), cpu=evil),
        output("plain", 800, (text("kl_divergence", 0.2, length=evil),), base=evil),
    ]
    overview = build_overview(measured)
    page = render_page(overview, plots(overview), title=evil)
    parser = Strict()
    parser.feed(page)
    assert parser.open == [] and parser.foreign == []
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert "prefers-color-scheme: dark" in page and "&lt;script&gt;" in page
    assert "not measured" in page and "0, by definition" in page
    assert page.count("<svg") == 2
    empty = build_overview([output("a", 1)])
    assert "there is nothing to plot" in render_page(empty, (), title="t")


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = []
    for name, value in (("one/small", 0.1), ("two/small", 0.2)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        report = output(name, 900, kl(value), timed=(10, 12)).report
        (folder / REPORT_FILE).write_text(json.dumps(report.to_json()))
        made.append(folder)
    return made


def test_the_command_writes_the_page(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    assert main(["report", *map(str, folders), "--output", str(page), "--title", "Mine"]) == 0
    out = capsys.readouterr().out
    assert "Quality against size, Pareto-optimal: org/base, one/small" in out and f"Written to {page}" in out
    assert "<title>Mine</title>" in page.read_text()
    assert page.stat().st_mode & 0o044
    assert list(tmp_path.glob(".ishrink*")) == []

    assert main(["report", *map(str, folders), "--output", str(page)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["report", *map(str, folders), "--output", str(page), "--overwrite", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["label"] for model in found["models"]] == ["org/base", "one/small", "two/small"]
    assert found["columns"][0]["cells"]["two/small"]["value"] == 0.2
    assert found["pictures"][0]["points"][0]["is_base"]
    assert main(["report", str(folders[0])]) == 0
    assert "For a page with plots: --output" in capsys.readouterr().out


def test_facts_of_an_output_folder_of_shrink(llama_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "cut"
    flags = ["--importance", "l2-norm", "--layer-importance", "l2-norm", "--no-evaluate", "--no-benchmark"]
    shape = ["--intermediate-size", "16", "--compensation", "none"]
    assert main(["shrink", "--model", str(llama_folder), "--output", str(target), *flags, *shape, "--json"]) == 0
    (model,) = [each for each in build_overview(read_reports([target])).models if not each.is_base]
    assert re.match(r"intermediate_size \d+ to 16", model.facts["shape"])
    assert (model.facts["compensation"], model.facts["recovery"]) == ("none", "none")
    assert model.base is not None and model.params < 10**9


def test_a_file_with_json_output_is_read(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text((folders[0] / REPORT_FILE).read_text())
    assert [each.label for each in read_reports([path, folders[0]])] == ["measured", "small"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not an output folder of shrink or recover: it has no ishrink_report.json"),
        ("{", "is not JSON"),
        ("[]", "not an iShrink report"),
        ('{"schema": 99}', "has schema 99"),
        (
            '{"schema": 1, "base": null, "shrunk": {"name": "x"}, "environment": {}}',
            "lacks shrunk.bytes",
        ),
        ('{"schema": 1, "base": null, "shrunk": 3, "environment": {}}', "is damaged"),
    ],
)
def test_an_unreadable_report_is_refused(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture
) -> None:
    if content is not None:
        (tmp_path / REPORT_FILE).write_text(content)
    with pytest.raises(SourceError, match=message):
        read_reports([tmp_path])
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_path_and_a_path_given_twice_are_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist; name output folders"):
        read_reports([tmp_path / "nowhere"])
    with pytest.raises(RequestError, match="is given twice"):
        read_reports([folders[0], folders[1], folders[0] / "."])


def test_a_page_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match="is a folder; name a file"):
        write_page("x", tmp_path)
    with pytest.raises(OutputError, match="is not a folder; create it first"):
        write_page("x", tmp_path / "none" / "page.html")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)"):
        write_page("x", tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_figure_added_later_has_its_own_conditions() -> None:
    report = output("small", 900, (text("perplexity", 9.0),), (1.0, 2.0)).report
    here = speed(2.0)
    there = speed(2.0).with_environment(replace(MACHINE, cpu="B"))
    assert dict(conditions(here, "speed", report))["cpu"] == "A"
    assert dict(conditions(there, "speed", report))["cpu"] == "B"
    added = text("perplexity", 9.0).with_environment(replace(MACHINE, dtype="float32"))
    assert dict(conditions(added, "quality", report))["dtype"] == "float32"
