"""The probes of a browser are those of a program for another device."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.search import on_device
from optimum_ishrink.search.options import ProfileOptions
from optimum_ishrink.search.probe_weights import append_weights
from optimum_ishrink.search.profiling import write_profile_probes
from tests.helpers import made_up_device


def test_they_are_the_same_files(base_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_device.install(monkeypatch)
    config, options = IShrinkConfig(), ProfileOptions(prompt_length=8, context=64, timing_rounds=1)
    for name in ("probes", "again"):
        (tmp_path / name).mkdir()
        write_profile_probes(Session(base_source, config), config, options, tmp_path / name)
    files = {
        path.relative_to(tmp_path / "probes"): path for path in (tmp_path / "probes").rglob("*") if path.is_file()
    }
    assert all(path.read_bytes() == (tmp_path / "again" / name).read_bytes() for name, path in files.items())

    program = tmp_path / "phone.pyz"
    IShrinker(base_source).profile_script(output=program, prompt_length=8, context=64, timing_rounds=1)
    plan = json.loads((tmp_path / "probes" / "plan.json").read_text())
    assert plan == on_device.read_plan(program)
    (tmp_path / "expected").mkdir()
    expected = on_device.write_probes(program, plan, tmp_path / "expected")

    # As the page does it: headers one after the other, then the weights repeated.
    headers = gzip.decompress((tmp_path / "probes" / "headers.gz").read_bytes())
    tiles = {path.name: path.read_bytes() for path in (tmp_path / "probes" / "tiles").iterdir()}
    for probe, file in zip(plan["profile"]["probes"], plan["files"], strict=True):
        path = tmp_path / "made.gguf"
        path.write_bytes(headers[: file["header"]])
        headers = headers[file["header"] :]
        append_weights(path, file["parts"], tiles)
        assert path.read_bytes() == expected[probe["name"]].read_bytes()
    assert headers == b""
