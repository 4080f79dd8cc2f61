"""The page's rule of when a model is faster is Python's: one table of cases for both."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.evaluation.timing import FASTER, NO_DIFFERENCE, SLOWER, TOO_FEW

from .timing_cases import FILE, cases

APP = Path(__file__).parents[2] / "app"
ESBUILD = APP / "node_modules" / ".bin" / "esbuild"

CASES: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))


def near(value: object) -> Any:
    """Return what a number of another program has to equal."""
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def test_the_table_is_what_python_says() -> None:
    found = cases()
    assert [each["name"] for each in found] == [each["name"] for each in CASES]
    for mine, stored in zip(found, CASES, strict=True):
        for timing, expected in zip(mine["timings"], stored["timings"], strict=True):
            assert timing["comparison"].pop("verdict") == expected["comparison"]["verdict"], mine["name"]
            rest = {key: value for key, value in expected["comparison"].items() if key != "verdict"}
            assert timing.pop("comparison") == {key: near(value) for key, value in rest.items()}, mine["name"]
            assert timing == {key: near(value) for key, value in expected.items() if key != "comparison"}


def test_the_table_has_every_verdict() -> None:
    verdicts = Counter(timing["comparison"]["verdict"] for each in CASES for timing in each["timings"])
    assert all(verdicts[verdict] >= 5 for verdict in (FASTER, NO_DIFFERENCE, TOO_FEW)) and verdicts[SLOWER]


@pytest.fixture(scope="module")
def rule(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page's rule as one script with the global `rule`."""
    if not ESBUILD.is_file() or shutil.which("node") is None:
        pytest.skip("app/node_modules is missing: run `make app`")
    script = tmp_path_factory.mktemp("rule") / "statistics.js"
    options = ["--bundle", "--format=iife", "--global-name=rule", "--target=es2022", f"--outfile={script}"]
    subprocess.run([ESBUILD, str(APP / "src" / "statistics.ts"), *options], check=True, capture_output=True)
    return script.read_text(encoding="utf-8")


def test_the_page_says_the_same(rule: str, browser: Any) -> None:
    page = browser.new_page()
    page.add_script_tag(content=rule)
    found = page.evaluate(
        """(cases) => cases.map(({timings}) => ({
             comparisons: rule.compareTimings(timings),
             medians: timings.map(({ratios}) => rule.median(ratios)),
             quartiles: timings.map(({ratios}) => rule.quartiles(ratios)),
           }))""",
        CASES,
    )
    page.close()
    for mine, stored in zip(found, CASES, strict=True):
        expected = [timing["comparison"] for timing in stored["timings"]]
        verdicts = [[each.pop("verdict") for each in side] for side in (mine["comparisons"], map(dict, expected))]
        assert verdicts[0] == verdicts[1], stored["name"]
        for comparison, wanted in zip(mine["comparisons"], expected, strict=True):
            numbers = {key: near(value) for key, value in wanted.items() if key != "verdict"}
            assert comparison == numbers, stored["name"]
        assert mine["medians"] == near([timing["median"] for timing in stored["timings"]])
        for quartiles, timing in zip(mine["quartiles"], stored["timings"], strict=True):
            assert quartiles == near(timing["quartiles"])


def test_the_page_takes_turns_as_python_does(rule: str, browser: Any) -> None:
    page = browser.new_page()
    page.add_script_tag(content=rule)
    assert page.evaluate("[0, 1, 2].map((round) => rule.inTurn(['A', 'B'], round).join(''))") == ["AB", "BA", "AB"]
    assert page.evaluate("rule.inverted({ratio: 2, interval: [1, 4]})") == {"ratio": 0.5, "interval": [0.25, 1]}
    page.close()
