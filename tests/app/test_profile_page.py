"""The page's cost profile is one that a search takes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.search import on_device as device
from optimum_ishrink.search.profile import Profile
from optimum_ishrink.search.runtime import Runtime
from optimum_ishrink.search.turns import Workload, settle
from tests.app.probe_site import add_probes
from tests.app.sites import serve, write_site
from tests.app.test_measure_page import Visit, finished, saved
from tests.app.test_timing_cases import APP, ESBUILD
from tests.helpers.base_file import base_template
from tests.helpers.tokenizer_kinds import byte_level
from tests.helpers.trimmed_gguf import save_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A tiny llama model."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    return open_source(save_model(tmp_path_factory.mktemp("profiled") / "tiny", tokenizer, num_hidden_layers=3))


@pytest.fixture(scope="module")
def program(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What profiles another device."""
    path = tmp_path_factory.mktemp("program") / "phone.pyz"
    IShrinker(source).profile_script(output=path, prompt_length=8, context=64, timing_rounds=2)
    return path


@pytest.fixture
def probe_site(program: Path, page_folder: Path, tiny_ggufs: dict[str, Path], tmp_path: Path) -> Path:
    """A site of one model with the probes of another."""
    site = write_site(page_folder, [("shrunk", tiny_ggufs["shrunk"])], tmp_path / "site")
    add_probes(program, site)
    return site


@pytest.fixture
def probes_script(tmp_path: Path) -> str:
    """The page's maker of probes, as one script with the global `probes`."""
    if not ESBUILD.is_file() or shutil.which("node") is None:
        pytest.skip("app/node_modules is missing: run `make app`")
    script = tmp_path / "probes.js"
    options = ["--bundle", "--format=iife", "--global-name=probes", "--target=es2022", f"--outfile={script}"]
    subprocess.run([ESBUILD, str(APP / "src" / "probes.ts"), *options], check=True, capture_output=True)
    return script.read_text(encoding="utf-8")


def test_the_profile_is_in_the_report(
    probe_site: Path, source: Source, visit: Visit, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serve(probe_site) as address:
        page = visit(address + "measure.html?threads=1")
        page.click("#measure-profile")
        assert finished(page, 240) == "done", page.locator("#measure-failure").inner_text()
        report = saved(page, tmp_path)
        assert "holds the profile" in page.locator("#profile-state").inner_text()
        page.goto(address + "measure.html?run=1&rounds=1&cold=0&lengths=8&new=2&threads=1&memory=0")
        assert finished(page) == "done"
        assert saved(page, tmp_path)["profile"] == report["profile"]
    assert (report["samples"], report["comparisons"]) == ([], [])
    (tmp_path / "profile.json").write_text(json.dumps(report["profile"]), encoding="utf-8")
    found = Profile.read(tmp_path / "profile.json")
    asked = SimpleNamespace(name="llama.cpp", types=("q8_0", "q5_0", "q4_0"))
    binding = base_template(source, tmp_path_factory.mktemp("file") / "base.gguf").binding
    found.check(binding, cast(Runtime, asked), threads=1, workload=Workload(prompt=8, context=64))
    assert found.build.startswith("@wllama/wllama")
    assert all(set(probe.figures) == {"decode", "ttft"} for probe in found.probes)
    assert all(value > 0 for probe in found.probes for value in probe.figures.values())


def test_probes_are_those_of_python(
    program: Path, probe_site: Path, probes_script: str, visit: Visit, tmp_path: Path
) -> None:
    (tmp_path / "probes").mkdir()
    plan = device.read_plan(program)
    written = device.write_probes(program, plan, tmp_path / "probes")
    (probe_site / "probes.js").write_text(f"{probes_script}\nglobalThis.probes = probes;\n", encoding="utf-8")
    (probe_site / "blank.html").write_text("<!doctype html><title>probes</title><script src='probes.js'></script>")
    with serve(probe_site) as address:
        page = visit(address + "blank.html", reports=False)
        found = page.evaluate(
            """async () => {
                 const path = "probes/plan.json";
                 const files = await probes.makeProbes(path, await probes.readPlan(path));
                 const hex = async (file) => {
                   const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
                   return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
                 };
                 return Promise.all(files.map(hex));
               }"""
        )
    expected = [sha256(written[probe["name"]]) for probe in plan["profile"]["probes"]]
    assert found == expected


def test_figures_are_settled_as_python_does(probes_script: str, browser: Any) -> None:
    page = browser.new_page()
    page.add_script_tag(content=probes_script)
    for count in range(1, 8):
        turns = [{"decode": 10.0 + (each * 5) % 7, "ttft": 0.1 + ((each * 3) % 5) / 100} for each in range(count)]
        assert page.evaluate("(turns) => probes.settle(turns)", turns) == settle({"probe": turns})["probe"]
    page.close()


@pytest.mark.parametrize(("name", "message"), [("headers.gz", "404 for probes/headers.gz"), ("tiles/q4_0", "404 for")])
def test_probes_that_are_not_there_are_named(probe_site: Path, visit: Visit, name: str, message: str) -> None:
    (probe_site / "probes" / name).unlink()
    with serve(probe_site) as address:
        page = visit(address + "measure.html?threads=1&profile=1", reports=False)
        assert finished(page) == "failed"
        assert message in page.locator("#measure-failure").inner_text()
        assert "ishrink app --probes" in page.locator("#measure-failure").inner_text()


def sha256(path: Path) -> str:
    """Return a file's checksum."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
