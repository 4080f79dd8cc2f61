"""IShrinker and its results."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.errors import PublishError
from tests.helpers.tiny import tiny_config, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 12)[None]


def test_a_result_without_a_folder_lives_as_long_as_itself(quick: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(tiny_config("qwen3"))
    shrinker = IShrinker.from_pretrained(model, tokenizer=tiny_tokenizer(), dtype="float32", device="cpu")
    result = shrinker.shrink(num_hidden_layers=2, importance="taylor", **quick)
    assert isinstance(result.model, PreTrainedModel)
    assert result.model.config.num_hidden_layers == 2
    assert result.tokenizer("abc")["input_ids"]
    assert result.report.shrunk.params == result.plan.new_num_parameters
    saved = result.save_pretrained(tmp_path / "kept")
    again = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    assert torch.equal(again(IDS).logits, result.model(IDS).logits)
    folder = result.folder
    assert "% of the parameters removed" in repr(result)
    del result, again
    gc.collect()
    assert not folder.exists()


def test_one_shrinker_serves_several_shapes(llama_folder: Path, quick: dict[str, Any]) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder, dtype="float32")
    plans = [shrinker.plan(intermediate_size=width, **quick) for width in (20, 16)]
    assert set(plans[1].units["intermediate_size"][0]) < set(plans[0].units["intermediate_size"][0])


def test_a_failed_push_keeps_a_result_that_has_no_folder_yet(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def fail(folder: Path, repo_id: str, **_: object) -> str:
        raise PublishError(f"{folder} is complete")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("optimum_ishrink.api.push.push_folder", fail)
    monkeypatch.setattr("optimum_ishrink.api.shrinker.check_destination", lambda repo_id, token: asked.append(repo_id))
    asked: list[str] = []
    how = {"importance": "l2-norm", "layer_importance": "l2-norm", "evaluate": False, "benchmark": False}
    how["compensation"] = "none"
    shrinker = IShrinker.from_pretrained(llama_folder)
    with pytest.raises(PublishError, match="is complete"):
        shrinker.shrink(num_hidden_layers=3, push_to_hub=True, repo_id="me/small", **how)
    gc.collect()
    (kept,) = tmp_path.glob("ishrink-*/*")
    assert asked == ["me/small"]
    assert f'from_pretrained("{kept.name}"' in (kept / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(kept).config.num_hidden_layers == 3
    monkeypatch.setattr("optimum_ishrink.pipeline.cutting.cut", fail)
    with pytest.raises(TypeError):
        shrinker.shrink(num_hidden_layers=2, **how)
    assert len(list(tmp_path.glob("ishrink-*/*"))) == 1


def test_what_is_said_of_the_model_holds_for_its_runs(llama_folder: Path) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder, dtype=torch.float32, device=torch.device("cpu"))
    session = shrinker._open(shrinker._config(IShrinkConfig(num_hidden_layers=3), {}))
    assert (session.dtype, session.device) == (torch.float32, torch.device("cpu"))
    assert shrinker._open(shrinker._config(IShrinkConfig(dtype="bfloat16"), {})).dtype == torch.bfloat16
    with pytest.raises(RequestError, match="unknown dtype 'float16'"):
        IShrinker.from_pretrained(llama_folder, dtype=torch.float16)


def test_push_needs_a_name(llama_folder: Path) -> None:
    with pytest.raises(RequestError, match="push_to_hub needs a repo_id"):
        IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=2, push_to_hub=True)


def test_a_shrinker_of_a_temporary_result_keeps_its_folder(llama_folder: Path) -> None:
    how = {"layer_importance": "l2-norm", "compensation": "none", "evaluate": False, "benchmark": False}
    shrinker = IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=3, **how).shrinker
    gc.collect()
    assert shrinker.plan(num_hidden_layers=2, **how).new_shape["num_hidden_layers"] == 2


def test_two_teachers_are_refused(llama_folder: Path) -> None:
    with pytest.raises(RequestError, match="teacher='a/b' and recovery_teacher='c/d' name two models; give one"):
        IShrinker.from_pretrained(llama_folder).recover(teacher="a/b", recovery_teacher="c/d")


def test_several_processes_need_a_folder(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_ishrink.api.output_folder.process_count", lambda: 2)
    with pytest.raises(RequestError, match="several processes need a common output folder; give save_directory"):
        IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=3)


def test_what_llama_cpp_does_not_read_is_refused(llama_folder: Path) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder)
    with pytest.raises(RequestError, match="does not read benchmark_batch_size; it reads benchmark_prompt_length, "):
        shrinker.benchmark(runtime="llama.cpp", benchmark_batch_size=2)
    with pytest.raises(RequestError, match="quantization and threads are read by runtime='llama.cpp' alone"):
        shrinker.benchmark(threads=2)


def test_a_result_is_measured_against_the_base_of_its_plan(llama_folder: Path, quick: dict[str, Any]) -> None:
    how = {"layer_importance": "l2-norm", "compensation": "none", "sample_new_tokens": 0}
    result = IShrinker.from_pretrained(llama_folder).shrink(
        num_hidden_layers=3, base_model="org/tiny", **{**quick, **how, "evaluate": False, "benchmark": False}
    )
    assert not result.report.shrunk.quality
    found = result.evaluate(**{**quick, **how})
    assert found.base is not None and found.base.name == "org/tiny"
    assert [each.metric for each in result.report.shrunk.quality] == [each.metric for each in found.shrunk.quality]
