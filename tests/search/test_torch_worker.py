from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.core.key_value_cache import cache_name
from optimum_ishrink.errors import SourceError
from optimum_ishrink.search import torch_worker
from optimum_ishrink.search.torch_runtime import time_checkpoints
from optimum_ishrink.search.turns import Workload
from tests.helpers.tiny import tiny_config, tiny_model


def request(folder: Path, **changes: Any) -> dict[str, Any]:
    asked = {"model": str(folder), "dtype": "float32", "device": "cpu", "threads": torch.get_num_threads()}
    return {**asked, "prompt": 20, "new_tokens": 3, "vocabulary": 50, "context": 48, **changes}


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_cache_is_filled_as_by_reading(model_type: str) -> None:
    model = tiny_model(tiny_config(model_type), 0)
    name = cache_name(model)
    with torch.inference_mode():
        filled = model(torch.arange(7)[None], use_cache=True)[name]
        torch_worker.fill(filled, 13)
        torch_worker.fill(filled, -1)
        read = model(torch.arange(20)[None], use_cache=True)[name]
        assert [each.keys.shape for each in filled.layers] == [each.keys.shape for each in read.layers]
        assert filled.get_seq_length() == 20
        model(torch.tensor([[1]]), use_cache=True, **{name: filled})


def test_a_checkpoint_is_timed_and_its_memory_measured(tmp_path: Path) -> None:
    model = tiny_model(tiny_config("llama"), 0)
    model.save_pretrained(tmp_path)
    first, *turns = torch_worker.measure(request(tmp_path), [{}, {}])
    assert first["build"].startswith("torch ") and first["build"].endswith("cpu")
    assert first["memory_bytes"] is None or first["memory_bytes"] >= 4 * model.num_parameters()
    assert len(turns) == 2 and all(turn["first"] > 0 and turn["decode"] > 0 for turn in turns)


def test_a_class_that_keeps_no_cache_reads_the_whole_context_for_a_token(tmp_path: Path) -> None:
    model = tiny_model(tiny_config("openai-gpt"), 0)
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True)
    torch_worker.measure_memory(model, torch.arange(20)[None], 48)
    assert lengths == [20, 48]


def test_memory_is_unknown_where_the_system_does_not_report_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError

    tiny_model(tiny_config("llama"), 0).save_pretrained(tmp_path)
    monkeypatch.setattr(Path, "write_text", refuse)
    (first,) = torch_worker.measure(request(tmp_path), [])
    assert first["memory_bytes"] is None


@pytest.mark.slow
def test_checkpoints_are_timed_in_processes(tmp_path: Path) -> None:
    how: dict[str, Any] = {"threads": 1, "vocabulary": 50, "rounds": 1}
    how |= {"dtype": torch.float32, "device": torch.device("cpu")}
    for name in ("a", "b"):
        tiny_model(tiny_config("llama"), 0).save_pretrained(tmp_path / name)
    files = {name: tmp_path / name for name in ("a", "b")}
    found, build = time_checkpoints(files, Workload(8, 2, 32), **how)
    assert build.startswith("torch ") and found.keys() == {"a", "b"}
    assert all(each["decode"] > 0 and each["ttft"] > 0 for each in found.values())
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="transformers cannot run a: .*cannot be loaded"):
        time_checkpoints({"a": tmp_path / "a"}, Workload(8, 2, 32), **how)
