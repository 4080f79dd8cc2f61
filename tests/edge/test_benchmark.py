from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.edge import benchmark as benchmark_module
from optimum_ishrink.edge.benchmark import BenchmarkSettings, fitting_lengths, run_benchmark
from optimum_ishrink.edge.gguf_file import GgufFile
from optimum_ishrink.errors import RequestError
from optimum_ishrink.report.report import ModelReport, Report
from optimum_ishrink.report.tables import speed_header, speed_rows
from tests.helpers.records import make_environment


@pytest.fixture
def files(tmp_path: Path) -> dict[str, GgufFile]:
    found = {}
    for name, size in (("base", 2000), ("shrunk", 1500)):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(bytes(size))
        found[name] = GgufFile(path, name, size, size, "q8_0", 300, "tiny")
    return found


class FakeProcess:
    """What a process would answer: the base takes twice as long; `noise` multiplies what it takes."""

    def __init__(
        self, request: Any, turns: list[tuple[str, int]], noise: Any = lambda: 1.0, drift: Any = None
    ) -> None:
        self.name = Path(request["model"]).stem
        self.slow = (2.0 if self.name == "base" else 1.0) * (1.0 if drift is None else next(drift))
        self.first = {"load_seconds": self.slow / 10 * noise(), "build": "some build"}
        self.turns, self.noise = turns, noise

    def ask(self, message: Any) -> dict[str, Any]:
        self.turns.append((self.name, message["length"]))
        slow = self.slow * self.noise()
        return {
            "first": slow * message["length"] / 1000,
            "decode": 100 / slow,
            "peak_memory_bytes": int(self.slow * 2**20),
        }


def fake(requests: list[dict[str, Any]], turns: list[tuple[str, int]], **how: Any) -> Any:
    @contextmanager
    def start(request: Any) -> Iterator[FakeProcess]:
        requests.append(dict(request))
        yield FakeProcess(request, turns, **how)

    return start


@pytest.mark.parametrize("cold", [True, False])
def test_models_take_turns(files: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch, cold: bool) -> None:
    monkeypatch.setattr(benchmark_module, "evict", lambda path: cold)
    requests: list[dict[str, Any]] = []
    turns: list[tuple[str, int]] = []
    settings = BenchmarkSettings(threads=2, lengths=(10, 20), new_tokens=4, rounds=12)
    result = run_benchmark(files, settings, start=fake(requests, turns))
    timed = [Path(request["model"]).stem for request in requests if request["lengths"]]
    assert timed[:4] == ["base", "shrunk", "shrunk", "base"]
    assert len(timed) == 24
    there_and_back = ["base", "shrunk", "shrunk", "base"]
    assert turns[:8] == [(name, length) for length in (10, 20) for name in there_and_back]
    assert [name for name, _ in turns[8:12]] == ["shrunk", "base", "base", "shrunk"]
    assert len(turns) == 12 * 8
    assert len(requests) == (48 if cold else 24)
    figures = {(m.metric, m.dataset): m for m in result.measurements["shrunk"]}
    assert figures["time_to_first_token_seconds", "llama.cpp q8_0, prompt 20"].value == 0.02
    assert figures["prefill_tokens_per_second", "llama.cpp q8_0, prompt 10"].value == 1000
    decode = figures["decode_tokens_per_second", "llama.cpp q8_0, prompt 10"]
    assert decode.samples == (100,) * 24  # two turns a round
    assert (decode.value, decode.n, decode.settings["threads"], decode.settings["build"]) == (100, 12, 2, "some build")
    assert figures["file_bytes", "llama.cpp q8_0"].value == 1500
    assert (("model_load_seconds", "llama.cpp q8_0, cold file cache") in figures) == cold
    assert bool(result.notes) != cold
    report = Report(
        ModelReport("base", 2000, 2000, speed=result.measurements["base"]),
        ModelReport("shrunk", 1500, 1500, speed=result.measurements["shrunk"]),
        make_environment(),
    )
    assert Report.from_json(report.to_json()).pairs("speed")
    header, rows = speed_header(report), speed_rows(report)
    assert len(header) == len(rows[0])
    verdicts = {row[0]: row[-1] for row in rows}
    assert verdicts.pop("file, MiB") == verdicts.pop("peak resident memory, MiB") == ""
    assert set(verdicts.values()) == {"faster"}
    ratios = {row[0]: row[5] for row in rows}
    assert (ratios["file, MiB"], ratios["time to first token, ms"], ratios["prefill, tokens/s"]) == (
        "0.750",
        "0.500",
        "2.000",
    )


def test_the_base_against_itself(files: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "evict", lambda path: True)
    draw = random.Random(0)

    same = {name: replace(file, path=file.path.with_name("same.gguf")) for name, file in files.items()}
    same["base"].path.write_bytes(bytes(2000))
    start = fake([], [], noise=lambda: draw.lognormvariate(0, 0.05))
    result = run_benchmark(same, BenchmarkSettings(1, (10, 20), 4, 12), start=start)
    found = [found for e in result.measurements["shrunk"] if (found := e.versus_base) is not None]
    assert len(found) == 8
    assert {each.verdict for each in found} == {"no difference"}
    assert all(each.interval[0] < 1 < each.interval[1] for each in found)


def test_models_that_memory_does_not_hold_together_answer_alone(
    files: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_module, "evict", lambda path: True)
    turns: list[tuple[str, int]] = []
    needed = 4550 + 2 * benchmark_module.PROCESS_BYTES  # 1.3 times 3,500
    for free, alone in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(benchmark_module, "free_memory", lambda free=free: free)
        turns.clear()
        drift = iter(x for number in range(10_000) for x in [1.0 + number / 1000])  # each process is slower
        result = run_benchmark(files, BenchmarkSettings(1, (10,), 4, 12), start=fake([], turns, drift=drift))
        decode = next(m for m in result.measurements["shrunk"] if m.metric == "decode_tokens_per_second")
        assert decode.settings["together"] is not alone
        assert decode.versus_base is not None
        assert (decode.versus_base.spread > 0) == alone  # turns of one process are alike, processes are not
        assert any("each answered alone" in note for note in result.notes) == alone
        order = ["base", "base", "shrunk", "shrunk"] if alone else ["base", "shrunk", "shrunk", "base"]
        assert [name for name, _ in turns[:4]] == order


def test_one_model_alone(files: dict[str, GgufFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_module, "evict", lambda path: False)

    monkeypatch.setattr(
        FakeProcess, "ask", lambda self, message: {"first": 1.0, "decode": 2.0, "peak_memory_bytes": None}
    )
    result = run_benchmark({"shrunk": files["shrunk"]}, BenchmarkSettings(1, (10,), 4, 1), start=fake([], []))
    assert "peak memory" in result.notes[-1]
    report = Report(None, ModelReport("shrunk", 1500, 1500, speed=result.measurements["shrunk"]), {})
    assert len(speed_header(report)) == len(speed_rows(report)[0]) == 5


@pytest.mark.parametrize("settings", [{"threads": 0}, {"threads": 1, "lengths": ()}, {"threads": 1, "rounds": 0}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="whole numbers of at least 1"):
        BenchmarkSettings(**settings)


def test_default_prompts_are_those_that_fit() -> None:
    assert fitting_lengths(None, 32, None) == fitting_lengths(None, 32, 8192) == (64, 256)
    assert fitting_lengths(None, 32, 256) == (64,)
    assert fitting_lengths((7, 472), 32, 512) == (7, 472)
    with pytest.raises(RequestError, match="the longest prompt that fits has 472"):
        fitting_lengths((7, 473), 32, 512)
    with pytest.raises(RequestError, match="a prompt of 256 tokens"):
        fitting_lengths(None, 32, 50)
