from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.artifacts import ModelReport, Report
from optimum_ishrink.edge import benchmark as benchmark_module
from optimum_ishrink.edge.benchmark import BenchmarkSettings, fitting_lengths, run_benchmark
from optimum_ishrink.edge.commands import benchmark_table
from optimum_ishrink.edge.files import GgufFile
from optimum_ishrink.errors import RequestError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, GgufFile]:
    found = {}
    for name, size in (("base", 2000), ("shrunk", 1500)):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(bytes(size))
        found[name] = GgufFile(path, name, size, size, "q8_0", 300, "tiny")
    return found


def fake(requests: list[dict[str, Any]]) -> Any:
    def run(request: Any) -> dict[str, Any]:
        requests.append(dict(request))
        slow = 2.0 if "base" in request["model"] else 1.0
        return {
            "load_seconds": slow / 10,
            "build": "some build",
            "first": {str(length): slow * length / 1000 for length in request["lengths"]},
            "decode": {str(length): 100 / slow for length in request["lengths"]},
            "peak_memory_bytes": int(slow * 2**20),
        }

    return run


@pytest.mark.parametrize("cold", [True, False])
def test_models_take_turns(files: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch, cold: bool) -> None:
    monkeypatch.setattr(benchmark_module, "evict", lambda path: cold)
    requests: list[dict[str, Any]] = []
    settings = BenchmarkSettings(threads=2, lengths=(10, 20), new_tokens=4, rounds=8)
    result = run_benchmark(files, settings, run=fake(requests))
    timed = [Path(request["model"]).stem for request in requests if request["lengths"]]
    assert timed[:4] == ["base", "shrunk", "shrunk", "base"]
    assert len(timed) == 16
    assert len(requests) == (32 if cold else 16)
    figures = {(m.metric, m.dataset): m for m in result.measurements["shrunk"]}
    assert figures["time_to_first_token_seconds", "llama.cpp q8_0, prompt 20"].value == 0.02
    assert figures["prefill_tokens_per_second", "llama.cpp q8_0, prompt 10"].value == 1000
    decode = figures["decode_tokens_per_second", "llama.cpp q8_0, prompt 10"]
    assert (decode.value, decode.n, decode.settings["threads"], decode.settings["build"]) == (100, 8, 2, "some build")
    assert figures["file_bytes", "llama.cpp q8_0"].value == 1500
    assert (("load_seconds", "llama.cpp q8_0, cold file cache") in figures) == cold
    assert bool(result.notes) != cold
    report = Report(
        ModelReport("base", 2000, 2000, speed=result.measurements["base"]),
        ModelReport("shrunk", 1500, 1500, speed=result.measurements["shrunk"]),
        {},
    )
    assert Report.from_json(report.to_json()).pairs("speed")
    header, rows = benchmark_table(report, result)
    assert len(header) == len(rows[0]) == 7
    assert {row[-1] for row in rows} == {"better"}
    assert next(row for row in rows if row[0].startswith("file"))[5] == "0.750"
    assert next(row for row in rows if row[0].startswith("peak"))[3:5] == ("2.0 [2.0, 2.0]", "1.0 [1.0, 1.0]")


def test_one_model_alone(files: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "evict", lambda path: False)

    def run(request: Any) -> dict[str, Any]:
        return {**fake([])(request), "peak_memory_bytes": None}

    result = run_benchmark({"shrunk": files["shrunk"]}, BenchmarkSettings(1, (10,), 4, 1), run=run)
    assert result.comparisons == {}
    assert "peak memory" in result.notes[-1]
    report = Report(None, ModelReport("shrunk", 1500, 1500, speed=result.measurements["shrunk"]), {})
    header, rows = benchmark_table(report, result)
    assert header == ("", "on", "n", "model")
    assert len(rows[0]) == 4


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": 1, "lengths": ()}, {"threads": 1, "rounds": 0}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="whole numbers of at least 1"):
        BenchmarkSettings(**settings)


def test_default_prompts_are_those_that_fit() -> None:
    assert fitting_lengths(None, 32, None) == fitting_lengths(None, 32, 8192) == (64, 256, 512)
    assert fitting_lengths(None, 32, 512) == (64, 256)
    assert fitting_lengths((7, 472), 32, 512) == (7, 472)
    with pytest.raises(RequestError, match="the longest prompt that does has 472"):
        fitting_lengths((7, 473), 32, 512)
    with pytest.raises(RequestError, match="a prompt of 512 tokens"):
        fitting_lengths(None, 32, 50)
