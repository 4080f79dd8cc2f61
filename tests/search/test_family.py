from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.errors import RequestError
from optimum_ishrink.planning.limits import parse_families
from optimum_ishrink.planning.nesting import is_nested
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.run import Run, read_run
from optimum_ishrink.report.search import Figures, FoundModel, SearchRecord
from optimum_ishrink.search.allocation import Budget
from optimum_ishrink.search.family import best_of_family, check_family, family_order
from optimum_ishrink.search.search import work_folder
from optimum_ishrink.search.store import MEASUREMENTS, Store, reuse_measurements, save_measurements
from tests.helpers import made_up_device
from tests.planning.test_nesting import plan
from tests.search.test_search import search, watch_measurements

BASE = {"params": 100.0, "bytes": 1000.0, "decode": 10.0, "ttft": 0.1}


def budgets(text: str) -> dict[str, Budget]:
    return {",".join(limit.text for limit in limits): Budget(limits, BASE) for limits in parse_families(text)}


def test_budgets_are_a_family_where_each_is_tighter_than_the_last() -> None:
    for text, order in (
        ("params=-20%;params=-10%;params=85", ("params=-10%", "params=85", "params=-20%")),
        ("decode=+30%;decode=11", ("decode=11", "decode=+30%")),
        ("bytes=900B,decode=+10%;decode=+20%,bytes=-20%", ("bytes=900B,decode=+10%", "decode=+20%,bytes=-20%")),
        ("params=-10%", None),
        ("bytes=80MB;decode=+20%", None),
        ("bytes=900B,decode=+20%;bytes=800B,decode=+10%", None),
        ("bytes=900B;bytes=800B,decode=+10%", None),
    ):
        assert family_order(budgets(text)) == order, text


def test_merged_heads_are_no_family() -> None:
    families = parse_families("params=-10%;params=-20%")
    check_family(families, merges=False)
    check_family(parse_families("params=-10%"), merges=True)
    with pytest.raises(RequestError, match="which merged KV heads are not: leave out merge_key_value_heads"):
        check_family(families, merges=True)


def model(name: str, divergence: float, *keeps: str) -> FoundModel:
    figures = Figures(divergence, None, None, {})
    return FoundModel(name, {}, {}, figures, figures, False, keeps)


def test_each_model_of_a_family_is_a_part_of_the_last() -> None:
    plans: dict[str, Plan | None] = {
        "base": None,
        "wide": plan((0, 1, 2, 3), ((0, 1, 2, 3),) * 4),
        "deep": plan((0, 1, 2)),
        "wide, less": plan((0, 1, 2, 3), ((1, 3),) * 4),
        "other, less": plan((0, 1), ((4, 5),) * 2),
    }
    models = [
        model("wide", 0.2, "10"),
        model("deep", 0.1, "10"),
        model("wide, less", 0.5, "10", "20"),
        model("other, less", 0.4, "10", "20"),
    ]

    def best(*chosen: FoundModel) -> list[str | None]:
        found = best_of_family(chosen, ("10", "20"), lambda each: plans[each.name])
        return [None if each is None else each.name for each in found.values()]

    assert best(*models) == ["deep", "other, less"]
    assert best(models[0], models[2], models[3]) == ["wide", "wide, less"]
    # The best one for the first budget would leave nothing for the second.
    assert best(models[1], models[2]) == ["wide, less", "wide, less"]
    assert best(models[0]) == ["wide", None] and best() == [None, None]
    assert best(model("base", 0.0, "10"), models[3]) == ["base", "other, less"]


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["one-shot", "contiguous"])
def test_a_family_is_nested_in_rows_layers_neurons_and_groups(
    layers: str, base_source: Source, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_device.install(monkeypatch)
    out = tmp_path / "out"
    targets = "params=-30%;params=-10%;params=-20%"
    record = search(
        base_source, out, text_file, target=targets, layer_selection=layers, keep_last_layers=0, quantization=["q4_0"]
    )
    assert [answer.part_of for answer in record.answers] == ["params=-20%", None, "params=-10%"]
    assert SearchRecord.read(out) == record
    plans = [read_run(out / (record.answers[number].folder or ""))[0] for number in (1, 2, 0)]
    sizes = []
    for larger, smaller in zip([None, *plans], plans, strict=False):
        assert smaller is not None and is_nested(larger, smaller)
        sizes.append(smaller.new_num_parameters)
    assert sizes == sorted(sizes, reverse=True)
    names = [each.name for each in record.models]
    assert len(set(names)) == len(names)
    assert "is a part of" in (out / "index.html").read_text()
    for answer in record.answers:
        budget = Run.read(out / (answer.folder or "")).report.budget
        assert budget is not None and budget.target == answer.target
        card = (out / (answer.folder or "") / "README.md").read_text()
        assert f"Searched for `{answer.target}` in llama.cpp" in card and "| this model |" in card


@pytest.mark.slow
def test_another_budget_uses_what_was_measured(
    base_source: Source,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made_up_device.install(monkeypatch)
    first, second = tmp_path / "first", tmp_path / "second"
    search(base_source, first, text_file, target="bytes=-30%")
    assert not work_folder(first).exists()
    assert {path.suffix for path in (first / MEASUREMENTS).iterdir()} == {".json", ".jsonl", ".safetensors"}
    measured = watch_measurements(monkeypatch)
    made_up_device.TIMED.clear()
    capsys.readouterr()
    record = search(base_source, second, text_file, target="bytes=-45%", reuse=str(first))
    assert f"using what was measured for {first}" in capsys.readouterr().err.replace("\n", "")
    assert record.answers[0].best and measured
    made = [model for model in record.models if not model.name.startswith("plain ")]
    assert len(measured) <= 2 * len(made)  # each in 16 bits and in its types
    assert len(made_up_device.TIMED) == 1  # the probes are not timed again
    measured.clear()
    search(base_source, second, text_file, target="bytes=-45%", overwrite=True)
    assert measured == []
    with pytest.raises(RequestError, match="depends on other settings: search_samples differ; give the same ones"):
        search(base_source, tmp_path / "third", text_file, target="bytes=-45%", reuse=str(first), search_samples=3)
    shutil.rmtree(first / MEASUREMENTS)
    with pytest.raises(RequestError, match="holds no measurements of a search; name the output folder of one"):
        search(base_source, tmp_path / "third", text_file, target="bytes=-45%", reuse=str(first))


@pytest.mark.slow
def test_a_text_or_a_library_that_changed_is_measured_again(
    base_source: Source, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up_device.install(monkeypatch)
    text = tmp_path / "text.txt"
    shutil.copyfile(text_file, text)
    search(base_source, tmp_path / "first", text, target="bytes=-30%")
    again = {"target": "bytes=-45%", "reuse": str(tmp_path / "first")}
    with monkeypatch.context() as patch:
        patch.setattr("optimum_ishrink.search.search._installed", lambda package: "9.9")
        with pytest.raises(RequestError, match="other settings: gguf, torch, transformers, xllamacpp differ"):
            search(base_source, tmp_path / "second", text, **again)
    text.write_text("Another text. " + text.read_text())
    with pytest.raises(RequestError, match=r"depends on other settings: .*text\.txt differ"):
        search(base_source, tmp_path / "second", text, **again)


def test_measurements_are_saved_and_used_again(tmp_path: Path) -> None:
    work, out, new = tmp_path / "work", tmp_path / "out", tmp_path / "new"
    Store(work, {"model": "a", "options": {"n": 1}}).add("x", 1)
    (work / "base.gguf").touch()
    (work / "windows.safetensors").touch()
    out.mkdir()
    save_measurements(work, out / MEASUREMENTS)
    names = ["measured.jsonl", "request.json", "windows.safetensors"]
    assert sorted(path.name for path in (out / MEASUREMENTS).iterdir()) == names
    new.mkdir()
    (new / "left").touch()
    request = {"model": "a", "options": {"n": 1}}
    reuse_measurements(out, new, request, asked=True)
    assert sorted(path.name for path in new.iterdir()) == names
    store = Store(new, request)
    assert store.value("x") == 1 and store.resumed == 1
    store.add("y", 2)
    reuse_measurements(out, new, request, asked=False)  # what is there has precedence
    assert Store(new, request).has("y")
    other = {"model": "b", "options": {"n": 2}}
    reuse_measurements(out, new, other, asked=False)
    assert Store(new, request).has("y")
    with pytest.raises(RequestError, match="depends on other settings: model, n differ; give the same ones"):
        reuse_measurements(out, new, other, asked=True)
    with pytest.raises(RequestError, match="holds no measurements of a search"):
        reuse_measurements(tmp_path, new, request, asked=True)
    assert json.loads((new / "request.json").read_text()) == request
