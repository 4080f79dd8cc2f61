from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OpenAIGPTLMHeadModel

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.errors import RequestError, SourceError
from optimum_ishrink.evaluation.environment import _governor
from optimum_ishrink.evaluation.footprint import (
    flops_per_token,
    kv_cache_bytes_per_token,
    measure_footprint,
    parameters_without_embeddings,
)
from optimum_ishrink.evaluation.fresh_process import measure_loading, run_jobs
from optimum_ishrink.evaluation.latency import READINGS, LatencySettings, measure_latency, time_in_turn
from optimum_ishrink.evaluation.load_worker import cached_share, evict, peak_resident_bytes, run_guarded, run_job, warm
from optimum_ishrink.evaluation.measure_speed import check_positions
from tests.helpers.tiny import save_tiny, tiny_config, tiny_model

CPU = torch.device("cpu")


def test_models_take_turns_at_every_token() -> None:
    calls: list[tuple[str, int, int]] = []
    models = {name: tiny_model(tiny_config("llama")) for name in ("a", "b")}
    for name, model in models.items():
        model.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: calls.append((name, *kwargs["input_ids"].shape)), with_kwargs=True
        )
    a, b = models.values()
    times = time_in_turn([a, b, b, a], torch.arange(3, 15).view(2, 6), 2)
    turns = "abba"
    assert calls == [(name, 2, length) for length in [6] * READINGS + [1, 1] for name in turns]
    assert [len(each) for each in times] == [READINGS + 2] * 4
    assert all(seconds > 0 for each in times for seconds in each)


def test_every_turn_decodes_greedily() -> None:
    model = tiny_model(tiny_config("llama"))
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    prompt = torch.arange(3, 9)[None]
    time_in_turn([model, model], prompt, 3)
    first = torch.cat(seen[2 * READINGS :: 2], 1)
    second = torch.cat(seen[2 * READINGS + 1 :: 2], 1)
    expected = model.generate(prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(first, expected[:, 6:])
    assert torch.equal(second, first)


def fake(seconds: Any) -> Any:
    """Return what times a round, from the seconds of a model's turn in a round."""
    rounds = 0

    def run(models: Any, prompt: torch.Tensor, new_tokens: int) -> list[list[float]]:
        nonlocal rounds
        rounds += 1
        assert not gc.isenabled()
        return [[seconds(model, rounds)] * (READINGS + new_tokens) for model in models]

    return run


def test_warmup_rounds_are_discarded() -> None:
    a, b = tiny_model(tiny_config("llama")), tiny_model(tiny_config("llama"))
    run = fake(lambda model, number: (100.0 if number == 1 else 1.0) * (2 if model is a else 1))
    found = measure_latency({"a": a, "b": b}, LatencySettings(16, 8, rounds=13, batch_size=2), run=run)
    assert gc.isenabled()
    values = {(name, m.metric): m for name, ms in found.items() for m in ms}
    assert values["a", "time_to_first_token_seconds"].value == 2.0
    assert values["b", "prefill_tokens_per_second"].value == 32.0
    assert values["b", "decode_tokens_per_second"].value == 2.0
    one = values["b", "time_to_first_token_seconds"]
    assert (one.n, one.dataset) == (13, "prompt 16, decode 8, batch 2")
    assert one.samples == (1.0,) * 26
    assert one.quartiles == (1.0, 1.0)
    assert values["a", "decode_tokens_per_second"].self_spread == 0
    for metric, ratio in (("time_to_first_token_seconds", 0.5), ("prefill_tokens_per_second", 2.0)):
        versus = values["b", metric].versus_base
        assert versus is not None
        assert (versus.ratio, versus.verdict) == (pytest.approx(ratio), "faster")
    assert values["a", "decode_tokens_per_second"].versus_base is None
    assert values["b", "decode_tokens_per_second"].self_spread is None
    assert json.dumps([m.settings for m in found["b"]])


def test_the_order_is_reversed_every_round() -> None:
    a, b = tiny_model(tiny_config("llama")), tiny_model(tiny_config("llama"))
    orders: list[str] = []

    def run(models: Any, prompt: torch.Tensor, new_tokens: int) -> list[list[float]]:
        orders.append("".join("a" if model is a else "b" for model in models))
        return [[1.0] * (READINGS + new_tokens) for _ in models]

    measure_latency({"a": a, "b": b}, [LatencySettings(4, 1, rounds=2), LatencySettings(8, 1, rounds=2)], run=run)
    assert orders == ["abba", "baab", "abba"] * 2


def test_a_model_alone_is_timed_against_itself() -> None:
    model = tiny_model(tiny_config("qwen2"))
    found = measure_latency({"shrunk": model}, LatencySettings(8, 3, rounds=2, warmup=0))["shrunk"]
    assert all(m.value > 0 and (m.self_spread or 0) >= 0 for m in found)
    assert found[0].dataset == "prompt 8, decode 3, batch 1"


def test_timing_does_not_change_the_weights() -> None:
    model = tiny_model(tiny_config("llama", tie_word_embeddings=True))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_latency({"shrunk": model}, LatencySettings(4, 1, rounds=1, warmup=0))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_cache_bytes_are_those_of_the_keys_and_values() -> None:
    for name, dtype in (("llama", torch.float32), ("llama", torch.bfloat16), ("gemma3_text", torch.float32)):
        model = tiny_model(tiny_config(name)).to(dtype)
        config = model.config
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        assert kv_cache_bytes_per_token(model) == numbers * dtype.itemsize, name
    assert kv_cache_bytes_per_token(tiny_model(tiny_config("openai-gpt"))) == 0


def test_operations_are_those_of_the_matrices_and_of_attention() -> None:
    model = tiny_model(tiny_config("llama"))
    config, length = model.config, 10
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    attention = 2 * length * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert flops_per_token(model, length) == 2 * (matrices + attention)


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_head_are_not_counted(tied: bool) -> None:
    model = tiny_model(tiny_config("llama", tie_word_embeddings=tied))
    inner = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    assert parameters_without_embeddings(model) == inner


def test_a_footprint_has_its_settings() -> None:
    found = {m.metric: m for m in measure_footprint(tiny_model(tiny_config("qwen2")), 12)}
    assert found["flops_per_token"].dataset == "prompt 12"
    assert found["kv_cache_bytes_per_token"].settings == {"dtype": "float32"}
    assert all(m.value > 0 for m in found.values())


def job(folder: Path, **changes: Any) -> dict[str, Any]:
    common = {"dtype": "float32", "device": "cpu", "threads": 1, "prompt_length": 4, "new_tokens": 2, "cold": False}
    return {**common, "folder": str(folder), **changes}


def test_a_class_that_keeps_no_cache_reads_all_tokens_again(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, tiny_config("openai-gpt"))
    lengths: list[int] = []
    call = OpenAIGPTLMHeadModel.forward

    def forward(model: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        lengths.append(input_ids.shape[1])
        return call(model, input_ids, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenAIGPTLMHeadModel, "forward", forward)
        assert run_job(job(folder))["load_seconds"] > 0
        assert lengths == [1, 4, 5, 6]
        lengths.clear()
        time_in_turn([tiny_model(tiny_config("openai-gpt"))], torch.ones(1, 4, dtype=torch.int64), 2)
        assert lengths == [4] * READINGS + [5, 6]


def test_checkpoints_are_loaded_in_fresh_processes(llama_folder: Path) -> None:
    found = measure_loading(
        {"base": llama_folder, "shrunk": llama_folder},
        dtype=torch.float32,
        device=CPU,
        prompt_length=4,
        new_tokens=2,
        rounds=2,
        run=run_jobs,
    )
    for measurements in found.values():
        values = {(m.metric, m.dataset): m for m in measurements}
        loading = values["load_seconds", "fresh process, warm file cache"]
        assert loading.value > 0
        assert loading.n == len(loading.samples) == 2
        peak = values["peak_memory_bytes", "fresh process, prompt 4, decode 2"]
        assert peak.value >= peak.settings["libraries_bytes"] > 10 * 2**20


def test_jobs_of_a_run(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def run(jobs: Any, advance: Any) -> list[dict[str, Any]]:
        asked.extend(jobs)
        one = {"load_seconds": 2.0, "peak_memory_bytes": 30, "libraries_bytes": 10, "device_peak_bytes": 7}
        return [{"not_evicted": True} if each["cold"] and each is jobs[0] else one for each in jobs]

    folders = {"base": llama_folder, "shrunk": tmp_path}
    how: Any = {"dtype": torch.float32, "device": CPU, "prompt_length": 4, "new_tokens": 2, "rounds": 2, "run": run}
    found = measure_loading(folders, **how)
    order = [(each["folder"] == str(llama_folder.resolve()), each["cold"]) for each in asked]
    assert order == [(base, cold) for base in (True, False, False, True) for cold in (True, False)]
    cold = [m for m in found["base"] if "cold" in m.dataset]
    assert [m.n for m in cold] == [1]
    assert {m.metric for m in found["shrunk"]} == {"load_seconds", "peak_memory_bytes", "peak_device_memory_bytes"}

    monkeypatch.setattr("optimum_ishrink.evaluation.fresh_process.free_on", lambda device: 0)
    assert measure_loading(folders, **how) == {"base": (), "shrunk": ()}


def test_a_checkpoint_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="cannot be loaded in a fresh process .ValueError"):
        measure_loading({"a": tmp_path}, dtype=torch.float32, device=CPU, prompt_length=1, new_tokens=1, rounds=1)


@pytest.mark.slow
def test_without_fork_every_job_has_its_interpreter(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    (found,) = run_jobs([job(llama_folder)], lambda _: None)
    assert found["load_seconds"] > 0


def test_a_worker_that_ends_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    started = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **how: started([sys.executable, "-c", ""], **how))
    assert run_jobs([job(Path())], lambda _: None) == [{"error": "the process ended early"}]


def test_measurements_of_the_worker(llama_folder: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    found = run_job(job(llama_folder, threads=threads))
    assert 0 < found["libraries_bytes"] <= found["peak_memory_bytes"]
    # The system counts pages in batches, so that two readings differ by some.
    assert found["peak_memory_bytes"] == pytest.approx(peak_resident_bytes(), rel=0.01)
    assert found["device_peak_bytes"] is None
    assert set(run_job(job(llama_folder, threads=threads, cold=True))) == {"load_seconds"}
    assert run_guarded(job(tmp_path, threads=threads))["error"].startswith(("OSError", "ValueError"))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system cannot drop a file's pages")
def test_an_evicted_file_is_not_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(os.urandom(1 << 20))
    evicted = evict([file])
    assert evicted == (cached_share(file) < 0.01)
    warm([file])
    assert cached_share(file) > 0.99
    (tmp_path / "empty").touch()
    assert cached_share(tmp_path / "empty") == 0


def test_timings_must_fit_the_models_positions() -> None:
    model_config = tiny_config("llama")
    check_positions(IShrinkConfig(benchmark_prompt_length=(8, 506)), model_config)
    with pytest.raises(RequestError, match="more than the model's 512 positions.*a prompt may have 506"):
        check_positions(IShrinkConfig(benchmark_prompt_length=(8, 507)), model_config)


def test_the_governor_is_read_where_there_is_one(tmp_path: Path) -> None:
    assert _governor(tmp_path) is None
    for number, name in enumerate(("performance", "powersave", "performance")):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(name + "\n")
    assert _governor(tmp_path) == "performance, powersave"
