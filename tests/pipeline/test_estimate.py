"""The estimate of a shrink: its arithmetic against what models really compute, and what the verb prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.architectures.binding import Binding
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.architectures.operations import active_parameters
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import OutputError
from optimum_ishrink.pipeline.estimate import Estimate, duration, estimate_shrink
from optimum_ishrink.pipeline.machine_speed import MachineSpeed, measure_speed
from optimum_ishrink.pipeline.stage_work import SAMPLING, Work, _of_rows, _of_sums, room_needed, work_of_shrink
from tests.helpers.refusals import refusal
from tests.helpers.tiny import save_tiny, tiny_config, tiny_model

SPEED = MachineSpeed(operations=1e9, float32_operations=5e8, memory=1e8, disk_read=2e6, disk_write=1e6)
TOKENS = (2, 16)


def bound(model_type: str) -> Binding:
    """Return the binding of a tiny model."""
    return bind_config(tiny_config(model_type).to_dict())[1]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "phi3", "gpt2"])
def test_a_token_is_multiplied_with_the_active_parameters(model_type: str) -> None:
    model = tiny_model(tiny_config(model_type)).eval()
    model.set_attn_implementation("sdpa")  # its products are not counted: they are none with weights
    binding = bound(model_type)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(TOKENS, dtype=torch.long), use_cache=False)
    products = 2 * TOKENS[0] * TOKENS[1] * active_parameters(binding, binding.shape)
    attention = sum(
        count
        for of, count in counter.get_flop_counts()["Global"].items()
        if "attention" in str(of) or "bmm" in str(of)
    )
    assert counter.get_total_flops() - attention == products


@pytest.mark.parametrize("model_type", ["mixtral", "olmoe", "qwen2_moe"])
def test_of_experts_those_count_that_a_token_is_routed_to(model_type: str) -> None:
    model, binding = tiny_model(tiny_config(model_type)), bound(model_type)
    share = binding.sizes["top_k"] / binding.sizes["experts"]
    expected = 0.0
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and weight is not model.get_input_embeddings().weight:
            expected += weight.numel() * (share if ".experts." in name else 1.0)
    assert active_parameters(binding, binding.shape) == pytest.approx(expected)
    fewer = {**binding.shape, "num_experts_per_tok": 1}
    assert active_parameters(binding, fewer) < active_parameters(binding, binding.shape)


def stages(**options: object) -> dict[str, Work]:
    binding = bound("llama")
    config = IShrinkConfig(calibration_samples=8, calibration_length=16, **options)  # type: ignore[arg-type]
    shape = {**binding.shape, **{key: value for key, value in options.items() if key in binding.shape}}
    work = work_of_shrink(binding, shape, config, element_bytes=4, stored_bytes=2)
    return {each.stage: each for each in work}


def test_only_what_is_requested_has_work() -> None:
    assert "compensation (ridge)" not in stages(vocab_size=200)
    neurons = stages(intermediate_size=16)
    assert {"sampling text", "importance (fisher)", "compensation (ridge)", "measuring quality"} <= set(neurons)
    assert "layer importance (block-influence)" in stages(num_hidden_layers=3)
    quiet = stages(intermediate_size=16, calibration=("pydoc",), evaluate=False, importance="l2-norm")
    assert set(quiet) == {"reading the model", "writing the checkpoint", "compensation (ridge)"}
    recovered = stages(intermediate_size=16, recovery="ce", calibration=("pydoc",), recovery_data=("pydoc",))
    kl = stages(intermediate_size=16, recovery="kl", calibration=("pydoc",), recovery_data=("pydoc",))
    assert recovered["recovery (ce)"].operations < kl["recovery (kl)"].operations


@pytest.mark.parametrize(("criterion", "passes"), [("activation-norm", 1), ("fisher", 2), ("taylor", 3)])
def test_passes_of_a_criterion(criterion: str, passes: int) -> None:
    found = stages(intermediate_size=16, importance=criterion)
    scored = found[f"importance ({criterion})"]
    binding = bound("llama")
    assert scored.operations == 2 * 8 * 16 * passes * active_parameters(binding, binding.shape)


@given(st.integers(1, 4096), st.integers(64, 16384), st.integers(2, 4))
def test_few_tokens_of_many_inputs_are_less_work_than_their_sums(tokens: int, width: int, folds: int) -> None:
    tokens = min(tokens, 3 * width // 4)
    few, all_sums = (count(tokens, width, width // 3, folds) for count in (_of_rows, _of_sums))
    assert few[0] < all_sums[0] and few[1] < all_sums[1]


def test_times_add_up() -> None:
    work = Work("a", "b", operations=1e9, float32_operations=1e9, weight_reads=3, disk_read=2e6, disk_write=2e6)
    assert work.seconds(SPEED, weight_bytes=1e8) == 1 + 2 + 3 + 1 + 2


def made(**options: object) -> Estimate:
    binding = bound("llama")
    config = IShrinkConfig(intermediate_size=16, device="cpu", **options)  # type: ignore[arg-type]
    shape = {**binding.shape, "intermediate_size": 16}
    return estimate_shrink(binding, shape, config, folder=Path("unused"), speed=SPEED)


def test_an_estimate_has_its_sum_its_peak_and_a_recovery_that_is_not_in_them() -> None:
    found = made()
    assert found.seconds == sum(stage.seconds for stage in found.stages)
    assert found.peak == max(stage.work.memory for stage in found.stages)
    assert found.recovery is not None
    assert found.rows()[-1][0] == "recovery (skew-reverse-kl), if requested"
    requested = made(recovery="kl")
    assert requested.recovery is None
    assert requested.seconds == pytest.approx(found.seconds + found.recovery.seconds, rel=0.7)
    assert not any("does not fit" in line for line in found.sentences())


def test_the_text_says_when_the_memory_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_ishrink.pipeline.estimate.free_on", lambda device: 1000)
    estimate = made()
    assert any("The model does not fit" in line and "--offload" in line for line in estimate.sentences())
    memory, states = estimate.from_disk
    sizes = bound("llama").sizes
    model = bound("llama")
    shape = {**model.shape, "intermediate_size": 16}
    assert states == room_needed(model, shape, IShrinkConfig(), element_bytes=2)
    assert 2 * max(bound("llama").layer_parameters(sizes)) * 2 < memory
    assert estimate.to_json()["from_disk"] == {"memory": memory, "hidden_states": states}


def test_the_text_says_when_layers_would_come_from_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(**options: object) -> str:
        estimate = made(**options)
        assert estimate.to_json()["offload"] == estimate.offloads
        return " ".join(estimate.sentences())

    from_disk = "Layers are read from disk one by one (--offload): instead of"
    assert from_disk in said(calibration=("pydoc",), offload="always")
    assert from_disk not in said(calibration=("pydoc",))
    monkeypatch.setattr("optimum_ishrink.pipeline.estimate.free_on", lambda device: 1000)
    assert from_disk in said(calibration=("pydoc",)) and "does not fit" not in said(calibration=("pydoc",))
    assert "(--offload always --device cpu)" in said(calibration=("pydoc",), offload="never")
    assert from_disk not in said()  # the model samples its own text
    assert "offload='always' will be refused: a model samples its own text" in said(offload="always")
    # Where nothing reads text, none is sampled.
    quiet = {"importance": "l2-norm", "compensation": "none"}
    assert from_disk in said(**quiet) and not any(row[0] == SAMPLING for row in made(**quiet).rows())
    assert any(row[0] == SAMPLING for row in made().rows())


def test_an_object_is_not_read_from_disk() -> None:
    config = IShrinkConfig(intermediate_size=16, device="cpu", offload="always", calibration=("pydoc",))
    binding = bound("llama")
    shape = {**binding.shape, "intermediate_size": 16}
    found = estimate_shrink(binding, shape, config, folder=Path("unused"), speed=SPEED, in_memory=True)
    assert not found.offloads and found.refusal is not None and "was given as an object" in found.refusal


@pytest.mark.parametrize("few", [True, False])
def test_the_room_is_that_of_tokens_where_they_are_few(few: bool) -> None:
    model = bound("llama")
    config = IShrinkConfig(calibration_samples=2, calibration_length=4 if few else 4096)
    width = model.shape["intermediate_size"] // 2
    room = room_needed(model, {**model.shape, "intermediate_size": width}, config, element_bytes=2)
    tokens, hidden = 2 * config.calibration_length, model.sizes["hidden"]
    sums = 4 * 4 * (tokens**2 if few else width * (width + hidden))
    states = (model.sizes["layers"] + 3) * tokens * hidden * 2
    assert room == max(states, tokens * (6 * hidden + model.sizes["ffn"]) * 2 + sums)


def test_durations() -> None:
    assert [duration(value) for value in (0.2, 99, 600, 9 * 3600 + 300)] == ["1 s", "99 s", "10 min", "9 h 5 min"]


def test_speeds_are_measured(tmp_path: Path) -> None:
    speed = measure_speed(torch.device("cpu"), torch.float32, 64, 96, tmp_path)
    assert all(value > 0 for value in vars(speed).values())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot write"):
        measure_speed(torch.device("cpu"), torch.float32, 64, 96, tmp_path / "missing")


def test_the_method_is_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimum_ishrink.pipeline.estimate.measure_speed", lambda *_: SPEED)
    found = IShrinker.from_pretrained(save_tiny(tmp_path, tiny_config("llama"))).estimate(intermediate_size=16)
    assert [stage.work.operations for stage in found.stages] == [stage.work.operations for stage in made().stages]


def test_the_verb_reads_the_config_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimum_ishrink.pipeline.estimate.measure_speed", lambda *_: SPEED)
    model = tmp_path / "model"
    tiny_config("llama").save_pretrained(model)
    words = ["plan", "--model", str(model), "--intermediate-size", "16", "--estimate"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in found["stages"]))
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "Estimate for this machine" in shown
    assert "recovery (skew-reverse-kl), if requested" in shown
    assert "--estimate chooses nothing" in refusal([*words, "--output", str(tmp_path / "plan.json")], capsys)
