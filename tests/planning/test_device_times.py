"""Targets on time, by the prices of a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import RequestError, ShapeError, SourceError
from optimum_ishrink.planning.device_times import read_profile, read_times
from optimum_ishrink.planning.options import ShapeOptions
from optimum_ishrink.planning.prices import CostModel
from optimum_ishrink.planning.profile_schema import PROFILE_SCHEMA
from optimum_ishrink.planning.shape import resolve_shape
from optimum_ishrink.search.cost_model import features
from optimum_ishrink.search.options import ProfileOptions
from optimum_ishrink.search.torch_runtime import TorchRuntime
from optimum_ishrink.search.turns import Workload
from tests.helpers.device_reports import save_report
from tests.helpers.smollm2 import BINDING
from tests.helpers.tiny import tiny_config, tiny_model
from tests.planning.test_target import zipfian

PRICES = {
    "decode": {"once": 1e-3, "layers": 1e-4, "bf16": 1e-10, "attention": 3e-10},
    "ttft": {"once": 2e-3, "layers": 1e-7, "bf16": 1e-12, "head": 2e-10, "attention": 2e-11},
}


def probes() -> list[dict[str, Any]]:
    """Probes from which these prices follow: each has mostly one feature, and a figure of nothing else."""
    found = []
    for metric, prices in PRICES.items():
        for name, price in prices.items():
            amount = 1e-2 / price
            seconds = price * amount
            figure = 1 / seconds if metric == "decode" else seconds
            features = {metric: dict.fromkeys(prices, 0.0) | {name: amount}}
            found.append({"name": name, "features": features, "figures": {metric: figure}, "fitted": True})
    return found


def profile(path: Path, binding: Any = BINDING, **changes: Any) -> str:
    data = {
        "schema": PROFILE_SCHEMA,
        "model": "SmolLM2",
        "model_type": binding.description.model_type,
        "shape": dict(binding.shape),
        "runtime": "torch",
        "workload": {"prompt": 128, "new_tokens": 32, "context": 2048},
        "probes": probes(),
        **changes,
    }
    path.write_text(json.dumps(data))
    return str(path)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text", "qwen3_moe", "phi3"])
def test_expected_seconds_are_those_of_a_search(model_type: str, tmp_path: Path) -> None:
    import torch

    tiny_model(tiny_config(model_type), 0).to(torch.bfloat16).save_pretrained(tmp_path / "m")
    source = open_source(tmp_path / "m")
    runtime = TorchRuntime(Session(source, IShrinkConfig()), ProfileOptions(runtime="torch"))
    binding, layout = source.binding, runtime.layout
    file = Path(profile(tmp_path / "profile.json", binding))
    for layers, width in ((4, 24), (3, 16), (1, 8)):
        shape = {**binding.shape, "num_hidden_layers": layers, "intermediate_size": width}
        found = features(layout, shape, {}, Workload(128), layout.in_shape(shape))
        expected = CostModel(PRICES, {}).predict({name: found[name] for name in PRICES})
        assert read_times(file, binding, "ttft").of(binding, shape, 0) == pytest.approx(expected["ttft"], rel=1e-5)
        seconds = read_times(file, binding, "decode").of(binding, shape, 0)
        assert 1 / seconds == pytest.approx(expected["decode"], rel=1e-5)


@pytest.mark.parametrize("rows", [None, zipfian()])
def test_a_target_on_time_is_met(rows: Any, tmp_path: Path) -> None:
    file = profile(tmp_path / "profile.json")
    for target, metric in (("decode=+20%", "decode"), ("ttft=-15%", "ttft")):
        shape = resolve_shape(BINDING, ShapeOptions(target=target, profile=file), rows)
        times = read_times(Path(file), BINDING, metric)
        share = times.of(BINDING, shape, 0) / times.of(BINDING, BINDING.shape, 0)
        wanted = 1 / 1.2 if metric == "decode" else 0.85
        assert wanted - 0.0051 <= share <= wanted + 1e-9
    whole = read_times(Path(file), BINDING, "decode").of(BINDING, BINDING.shape, 0)
    absolute = ShapeOptions(target=f"decode={1.2 / whole:.9f}t/s", profile=file)
    assert resolve_shape(BINDING, absolute, rows) == resolve_shape(
        BINDING, ShapeOptions(target="decode=+20%", profile=file), rows
    )


def test_the_embedding_of_an_untied_model_takes_no_time(tmp_path: Path) -> None:
    _, binding = bind_config(tiny_config("llama", tie_word_embeddings=False).to_dict())
    file = Path(profile(tmp_path / "profile.json", binding))
    times = read_times(file, binding, "decode")
    fewer = {**binding.shape, "vocab_size": binding.shape["vocab_size"] - 10}
    saved = times.of(binding, binding.shape, 0) - times.of(binding, fewer, 0)
    lost = binding.num_parameters() - binding.num_parameters(fewer)
    assert saved == pytest.approx(lost * times.per_parameter)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("ttft=5s", "no faster than the model, of which .* ms are expected: nothing has to be removed"),
        ("decode=+900%", r"nearest: .* tokens/s, \+\d"),
        ("ttft=-95%", r"nearest: .* ms, -\d"),
    ],
)
def test_times_that_cannot_be_met(target: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=words):
        resolve_shape(BINDING, ShapeOptions(target=target, profile=profile(tmp_path / "profile.json")))


def test_profiles_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    for changes, error, words in (
        ({"runtime": "llama.cpp"}, RequestError, "the profile is of llama.cpp, and shrink writes a checkpoint for"),
        ({"model_type": "qwen2"}, RequestError, "of SmolLM2 .qwen2., another model"),
        ({"probes": []}, SourceError, "is a damaged profile; make it again"),
        ({"schema": PROFILE_SCHEMA - 1}, SourceError, "is not a profile that this version wrote"),
    ):
        with pytest.raises(error, match=words):
            resolve_shape(BINDING, ShapeOptions(target="decode=+5%", profile=profile(file, **changes)))
    for target in ("params=-10%", None):
        with pytest.raises(RequestError, match="the target limits no time; leave it out"):
            ShapeOptions(target=target, profile=str(file))


def test_a_profile_in_the_report_of_a_device(tmp_path: Path) -> None:
    data = json.loads(Path(profile(tmp_path / "a.json")).read_text())
    save_report(tmp_path / "b.json", profile=data)
    assert read_profile(tmp_path / "b.json") == read_profile(tmp_path / "a.json")
    save_report(tmp_path / "c.json")
    with pytest.raises(
        SourceError, match="c.json is a device's report without a cost profile; the page's button 'Cost"
    ):
        read_profile(tmp_path / "c.json")
    save_report(tmp_path / "d.json", profile={"schema": 0})
    with pytest.raises(SourceError, match="is not a profile that this version wrote"):
        read_profile(tmp_path / "d.json")
