"""The measuring page in a real browser, with tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import until
from tests.app.recomputed import recomputed
from tests.app.sites import serve, write_site

RUN = "measure.html?run=1&rounds=2&cold=1&lengths=8,16&new=4&threads=1&memory=0&device=Test"
TIMINGS = [
    ("model_load_seconds", ", cold cache"),
    ("model_load_seconds", ", warm cache"),
    ("time_to_first_token_seconds", ", prompt 8"),
    ("decode_tokens_per_second", ", prompt 8"),
    ("response_seconds", ", prompt 8"),
    ("time_to_first_token_seconds", ", prompt 16"),
    ("decode_tokens_per_second", ", prompt 16"),
    ("response_seconds", ", prompt 16"),
]
Visit = Callable[..., Any]


def finished(page: Any, seconds: float = 90) -> str:
    """Return how a measurement ended."""
    until(page, "!['running', undefined].includes(document.documentElement.dataset.measured)", seconds)
    return str(page.evaluate("document.documentElement.dataset.measured"))


def saved(page: Any, tmp_path: Path) -> Any:
    """Return the report that the page saves."""
    with page.expect_download() as downloading:
        page.click("#save")
    path = tmp_path / downloading.value.suggested_filename
    assert path.name == "device_report.json"
    downloading.value.save_as(path)
    return json.loads(path.read_text(encoding="utf-8"))


def test_both_models_are_measured_in_turn(server: str, visit: Visit, tmp_path: Path, runtime: str) -> None:
    page = visit(server + RUN)
    assert finished(page) == "done"
    report = saved(page, tmp_path)
    assert (report["schema"], report["kind"], report["profile"]) == (1, "ishrink-device-report", None)
    assert report["device"]["name"] == "Test"
    assert report["device"]["browser"].split()[0] in {"Chromium", "HeadlessChrome", "Chrome"}
    assert report["runtime"]["threads"] == 1
    used = {"fast": ("@wllama/wllama 2.2.1", "b4709-c1f958c"), "current": ("@wllama/wllama 3.13.0", "b12211-7d7f028")}
    assert (report["runtime"]["package"], report["runtime"]["build"]) == used[runtime]
    assert (report["runtime"]["backend"], report["runtime"]["cross_origin_isolated"]) == ("cpu", True)
    assert report["settings"] == {"rounds": 2, "prompt_lengths": [8, 16], "new_tokens": 4, "context": 28}
    assert [model["role"] for model in report["models"]] == ["base", "shrunk"]
    found = {(each["role"], each["metric"], each["setting"]): each["values"] for each in report["samples"]}
    assert set(found) == {(role, *timing) for role in ("base", "shrunk") for timing in TIMINGS}
    for (_, _, setting), values in found.items():
        assert [len(turns) for turns in values] == {", cold cache": [1], ", warm cache": [1, 1]}.get(setting, [2, 2])
        assert all(value > 0 for turns in values for value in turns)

    # Python finds the same in the samples.
    expected = recomputed(report)
    assert {(each["metric"], each["setting"]) for each in expected} == set(TIMINGS)
    assert len(report["comparisons"]) == len(expected)
    for comparison in report["comparisons"]:
        key = comparison["metric"], comparison["setting"]
        (wanted,) = (each for each in expected if (each["metric"], each["setting"]) == key)
        for name, value in wanted.items():
            assert comparison[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-9)), name
    assert any("memory was not measured" in note for note in report["notes"])

    assert page.locator("#report tbody tr").count() == len(TIMINGS)
    assert page.locator("#report tbody th").all_inner_texts()[0] == "Loading, cold cache"
    assert set(page.locator("#report td.verdict").all_inner_texts()) == {"too few rounds to tell"}
    assert page.locator("#report .sentences li").all_inner_texts() == [
        "Too few rounds to tell of any figure: 2, and with as many figures as here it takes 11."
    ]
    labels = page.locator("#report svg[role=img]:not([aria-hidden])").evaluate_all("all => all.map(e => e.ariaLabel)")
    assert len(labels) == len(TIMINGS)
    assert "times as fast" in labels[0]

    # The report is there again, and the form asks for no more than before.
    page.goto(server + "measure.html")
    until(page, "document.querySelectorAll('#report tbody tr').length > 0")
    assert saved(page, tmp_path) == report


def test_one_model_has_figures_and_no_verdict(
    page_folder: Path, tiny_ggufs: dict[str, Path], visit: Visit, tmp_path: Path
) -> None:
    folder = write_site(page_folder, [("shrunk", tiny_ggufs["shrunk"])], tmp_path / "site")
    with serve(folder) as address:
        page = visit(address + RUN)
        assert finished(page) == "done"
        report = saved(page, tmp_path)
    assert report["comparisons"] == []
    assert {each["role"] for each in report["samples"]} == {"shrunk"}
    assert page.locator("#report thead th").all_inner_texts() == ["Figure", "Median", "Turns"]


def test_a_model_against_itself(page_folder: Path, tiny_ggufs: dict[str, Path], visit: Visit, tmp_path: Path) -> None:
    models = [(role, tiny_ggufs["base"]) for role in ("shrunk", "base")]
    with serve(write_site(page_folder, models, tmp_path / "site")) as address:
        page = visit(address + RUN + "&cold=0")
        assert finished(page) == "done"
        assert len(saved(page, tmp_path)["comparisons"]) == 8


def test_stopping_keeps_finished_rounds(server: str, visit: Visit, tmp_path: Path) -> None:
    page = visit(server + RUN.replace("rounds=2", "rounds=200"))
    # The time left is said after two seconds, which a fast machine may spend on any number of these short rounds.
    until(page, r"/^Round (?![12] )\d+ of 200, about .* left$/.test(document.getElementById('progress-text').textContent)", 90)
    assert page.locator("#measure").is_disabled()
    page.click("#stop")
    assert finished(page) == "done"
    report = saved(page, tmp_path)
    rounds = report["settings"]["rounds"]
    assert 2 <= rounds < 200
    assert f"stopped after {rounds} of 200 rounds" in report["notes"]
    warm = [each["values"] for each in report["samples"] if each["setting"] == ", prompt 16"]
    assert {len(values) for values in warm} == {rounds}
    assert page.locator("#measure").is_enabled()


def test_stopping_before_a_round_is_finished_leaves_nothing(server: str, visit: Visit) -> None:
    page = visit(server + RUN)
    page.click("#stop")
    assert finished(page) == "stopped"
    assert page.locator("#result").is_hidden()
    assert page.locator("#measure-failure").is_hidden()


def test_rounds_during_which_the_page_was_hidden_are_repeated(server: str, visit: Visit, tmp_path: Path) -> None:
    page = visit(server + RUN.replace("run=1", "run=0"))
    page.click("#measure")
    until(page, "document.getElementById('progress-text').textContent.startsWith('Round 2')", 90)
    hide = "hidden => { Object.defineProperty(document, 'hidden', {configurable: true, value: hidden});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    assert page.locator("#hidden-notice").get_attribute("data-hidden") == ""
    page.evaluate(hide, False)
    assert finished(page) == "done"
    report = saved(page, tmp_path)
    assert "rounds repeated because the page was hidden meanwhile: 1" in report["notes"]
    assert {len(each["values"]) for each in report["samples"]} == {1, 2}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("rounds=0", "whole numbers of at least 1"),
        ("lengths=8,x", "separated by commas"),
        ("new=1", "At least 2 new tokens"),
        ("cold=-1", "Cold loads must be a whole number"),
        ("lengths=600", "does not fit into 512 tokens of context. The longest that fits has 472"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(server: str, visit: Visit, query: str, message: str) -> None:
    page = visit(server + "measure.html?run=1&" + query)
    until(page, "!document.getElementById('measure-failure').hidden")
    assert message in page.locator("#measure-failure").inner_text()
    assert page.evaluate("document.documentElement.dataset.measured") is None


def test_a_file_that_is_cut_short_is_named(
    page_folder: Path, tiny_ggufs: dict[str, Path], visit: Visit, tmp_path: Path
) -> None:
    folder = write_site(page_folder, [("shrunk", tiny_ggufs["shrunk"])], tmp_path / "site")
    *_, part = sorted((folder / "models").rglob("part-*"))
    part.write_bytes(part.read_bytes()[:-100])
    with serve(folder) as address:
        page = visit(address + RUN, reports=False)
        assert finished(page) == "failed"
        assert "Copy the whole site again" in page.locator("#measure-failure").inner_text()


def test_on_a_small_screen_each_figure_is_a_block(server: str, visit: Visit) -> None:
    page = visit(server + RUN, viewport={"width": 360, "height": 740})
    assert finished(page) == "done"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    box = page.locator("#report td.verdict").first.bounding_box()
    assert box["x"] + box["width"] <= 360
    page.click("#measure-settings summary")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    too_small = "[...document.querySelectorAll('button, summary, input, select')].filter((each) => each.offsetParent"
    too_small += " && !['checkbox'].includes(each.type) && each.getBoundingClientRect().height < 44).length"
    assert page.evaluate(too_small) == 0


def test_without_isolation_there_is_one_thread_and_no_memory(plain_server: str, visit: Visit, tmp_path: Path) -> None:
    page = visit(plain_server + RUN.replace("memory=0", "memory=1"), service_workers="block")
    assert finished(page) == "done"
    report = saved(page, tmp_path)
    assert (report["runtime"]["threads"], report["runtime"]["cross_origin_isolated"]) == (1, False)
    assert any("isolated by the server's headers" in note for note in report["notes"])


@pytest.fixture
def memory_site(page_folder: Path, tiny_ggufs: dict[str, Path], tmp_path: Path) -> Iterator[str]:
    """A site of one model: its memory takes half as long to tell as that of two."""
    with serve(write_site(page_folder, [("shrunk", tiny_ggufs["shrunk"])], tmp_path / "site")) as address:
        yield address


@pytest.mark.slow
def test_memory(memory_site: str, visit: Visit, tmp_path: Path) -> None:
    page = visit(memory_site + RUN.replace("memory=0", "memory=1"))
    assert finished(page, 150) == "done"
    report = saved(page, tmp_path)
    memory = [each["values"] for each in report["samples"] if each["metric"] == "peak_memory_bytes"]
    if memory:  # a browser may not tell in time, and says so
        assert 1e6 < memory[0][0][0] < 2e9
    assert any(note.startswith("memory") for note in report["notes"])
