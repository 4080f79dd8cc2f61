from __future__ import annotations

import json
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink import IShrinkConfig, RequestError
from optimum_ishrink.cli.parser import Parser, add_verbs
from optimum_ishrink.cli.requests import read_request
from optimum_ishrink.errors import PublishError, SourceError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def test_it_is_used_like_an_optimum_config(tmp_path: Path) -> None:
    config = IShrinkConfig(seed=3)
    assert IShrinkConfig.from_dict(config.to_dict()) == config
    assert config.to_diff_dict() == {"seed": 3}
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / IShrinkConfig.CONFIG_NAME).read_text())["seed"] == 3
    assert callable(IShrinkConfig.push_to_hub)


def test_it_survives_saving(tmp_path: Path) -> None:
    config = IShrinkConfig(num_hidden_layers=14, calibration="a.txt,self", tasks=["x"], benchmark=False)
    config.save_pretrained(tmp_path / "out")
    assert IShrinkConfig.from_pretrained(tmp_path / "out") == config
    saved = json.loads((tmp_path / "out" / "ishrink_config.json").read_text())
    assert set(saved) == set(IShrinkConfig().to_dict())
    assert saved["calibration"] == ["a.txt", "self"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_layers": 3}, "unknown config key 'num_layers' .did you mean 'num_hidden_layers'"),
        ({"importance": "tailor"}, "unknown importance 'tailor' .did you mean 'taylor'"),
        ({"layer_importance": "bi"}, "unknown layer importance 'bi'"),
        ({"expert_importance": "fisher"}, "unknown expert importance 'fisher'; allowed: frequency, l2-norm, reap"),
        ({"num_hidden_layers": 0}, "whole number of at least 1, not 0"),
        ({"num_hidden_layers": True}, "whole number of at least 1, not True"),
        ({"seed": -1}, "whole number of at least 0, not -1"),
        ({"seed": None}, "whole number of at least 0, not None"),
        ({"evaluate": "yes"}, "must be true or false"),
        ({"dtype": "int8"}, "unknown dtype 'int8'.*allowed: auto, bfloat16, float32"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"calibration_length": 1}, "at least 2"),
        ({"target": 15}, "target must be text"),
        ({"compensation": "ridgs"}, "unknown compensation 'ridgs' .did you mean 'ridge'"),
        ({"importance": 5}, "unknown importance '5'"),
        ({"importance": ["taylor"]}, "unknown importance"),
        ({"importance": "magnitude"}, "unknown importance 'magnitude'.*l2-norm"),
        ({"layer_selection": "gredy"}, "unknown layer selection 'gredy' .did you mean 'greedy'"),
        (
            {"layer_selection": "greedy", "layer_importance": "sum-of-units"},
            "'greedy' scores again.*'sum-of-units' cannot; layer_importance can be block-influence, divergence, perpl",
        ),
        ({"importance_group_size": 0}, "whole number of at least 1, not 0"),
        ({"prune": "layers"}, "unknown dimension to prune 'layers'.*allowed: intermediate_size"),
        ({"prune": ["num_attention_heads"]}, "unknown dimension to prune 'num_attention_heads'"),
        ({"calibration": 5}, "calibration must be a list of names, not 5"),
        ({"calibration": [1]}, "calibration must be a list of names"),
        ({"calibration": None}, "calibration must be a list of names"),
        ({"tasks": "a,,b"}, "tasks must be a list of names"),
        ({"allow_class_change": "yes"}, "must be true or false"),
        ({"recovery": "lk"}, "unknown loss 'lk'"),
        ({"recovery_labels": "some"}, "unknown recovery labels 'some'; allowed: answers, text"),
        ({"recovery_lora_start": "closed"}, "unknown recovery lora start 'closed' .did you mean 'closed-form'"),
        ({"recovery_compensation": "rige"}, "unknown recovery compensation 'rige' .did you mean 'ridge'"),
        ({"recovery_compensation_samples": 0}, "whole number of at least 1, not 0"),
        (
            {"recovery_compensation": "ridge", "recovery_lora_start": "closed-form"},
            "solves at full rank what recovery_lora_start='closed-form' solves at a low one; choose one",
        ),
        ({"recovery_train": "lora+norms"}, "'lora' is trained alone"),
        (
            {"recovery_train": "bias"},
            "unknown set of parameters 'bias'.*allowed: embeddings, full, head, last:N, lora, norms",
        ),
        ({"recovery_train": "last:0"}, "such as last:2, not 'last:0'"),
        ({"recovery_temperature": 0}, "recovery_temperature must be a number above 0, not 0"),
        ({"recovery_learning_rate": "fast"}, "recovery_learning_rate must be a number above 0, not 'fast'"),
        ({"recovery_lora_dropout": 1}, "recovery_lora_dropout must be at least 0 and below 1, not 1"),
        ({"recovery_length": 1}, "recovery_length must be a whole number of at least 2"),
        ({"recovery_tokens": 0}, "whole number of at least 1"),
        ({"recovery_checkpointing": 1}, "must be true or false"),
        ({"benchmark_prompt_length": "128,x"}, "whole numbers of at least 1, such as 64 or 64,512, not '128,x'"),
        ({"benchmark_prompt_length": []}, "benchmark_prompt_length must be whole numbers"),
        ({"benchmark_batch_size": [1, 0]}, "benchmark_batch_size must be whole numbers of at least 1"),
        ({"benchmark_batch_size": True}, "benchmark_batch_size must be whole numbers of at least 1"),
        ({"result_cache": 1}, "result_cache must be true or false"),
        ({"sample_new_tokens": -1}, "sample_new_tokens must be a whole number of at least 0"),
    ],
)
def test_values_that_are_not_allowed(values: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        IShrinkConfig(**values)


def test_what_is_timed_is_one_number_or_several() -> None:
    for written in (128, "128", [128], (128,)):
        assert IShrinkConfig(benchmark_prompt_length=written).benchmark_prompt_length == (128,)
    assert IShrinkConfig(benchmark_batch_size="1, 8,1").benchmark_batch_size == (1, 8)


def test_lists_are_stripped_and_devices_may_have_a_number() -> None:
    assert IShrinkConfig(tasks="a, b").tasks == ("a", "b")
    assert IShrinkConfig(device="cuda:1").device == "cuda:1"


def test_from_pretrained_without_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        IShrinkConfig.from_pretrained(tmp_path)
    with pytest.raises(SourceError, match="no ishrink_config.json at 'nobody/nothing'"):
        IShrinkConfig.from_pretrained("nobody/nothing")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_recipe_parses(path: Path) -> None:
    config = IShrinkConfig.from_yaml(path)
    assert config.shape or config.target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("a: [", "is not YAML"),
        ("- a", "not a list of 'name: value' lines"),
        ("num_layers: 3", "unknown config key"),
    ],
)
def test_recipes_that_are_none(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RequestError, match=message):
        IShrinkConfig.from_yaml(tmp_path / "r.yaml")


def parse(command: str) -> IShrinkConfig:
    parser = Parser(prog="ishrink")
    add_verbs(parser)
    return read_request(parser.parse_args(shlex.split(command)[1:]))[1]


def test_the_command_line_asks_for_the_same() -> None:
    config = IShrinkConfig(
        target="params=-15%",
        calibration="my text.txt,self",
        keep_first_layers=0,
        evaluate=False,
        seed=7,
        dtype="float32",
    )
    command = config.command("org/model", "out")
    assert command.startswith("ishrink shrink --model org/model --output out ")
    assert parse(command) == config


def test_what_is_published_of_recovery_holds_no_path(tmp_path: Path) -> None:
    config = IShrinkConfig(
        recovery_data=[str(tmp_path / "a.txt"), "org/data"],
        recovery_cache=str(tmp_path / "kept"),
        recovery_teacher=str(tmp_path),
    ).portable()
    assert (config.recovery_data, config.recovery_cache) == (("a.txt", "org/data"), "kept")
    assert config.recovery_teacher == tmp_path.name
    assert IShrinkConfig(recovery_teacher="org/larger").portable().recovery_teacher == "org/larger"
    several = IShrinkConfig(recovery_teacher=f"{tmp_path}:0.7, org/larger:0.3").portable()
    assert several.recovery_teacher == f"{tmp_path.name}:0.7,org/larger:0.3"


RECOVERY = {
    "recovery": "kl+hidden:0.1",
    "recovery_labels": "answers",
    "recovery_train": "norms+last:2",
    "recovery_lora_start": "closed-form",
    "recovery_compensation": "ridge",
    "recovery_teacher": "org/larger",
    "recovery_cache": "kept",
    "recovery_keep_adapter": "me/pruned",
    "recovery_layer_decay": 0.9,
    "recovery_ema": 0.99,
    "recovery_for": "q4_0",
    "compensation_for": "q5_0",
    "recovery_types": "mixed.gguf",
    "recovery_rounding": "calibrated",
}
WITH = {
    "profile": {"target": "decode=+5%"},
    "sparsity_criterion": {"sparsity": "2:4"},
    "recovery_types": {"recovery_for": "mixed"},
    "recovery_rounding": {"recovery_for": "q4_0"},
}

SPARSITY = {"sparsity": "50%", "sparsity_criterion": "wanda"}


def test_every_config_key_has_a_flag() -> None:
    for name, default in ((field.name, field.default) for field in fields(IShrinkConfig)):
        if isinstance(default, bool):
            value: object = not default
        elif name in RECOVERY or name in SPARSITY:
            value = {**RECOVERY, **SPARSITY}[name]
        elif isinstance(default, int):
            value = default + 1
        elif isinstance(default, float) or name == "recovery_learning_rate":
            value = (default or 0.0) + 0.25
        elif name in ("importance", "expert_importance", "layer_importance"):
            value = "l2-norm"
        elif name in ("dtype", "device", "compensation", "offload"):
            value = {"dtype": "float32", "device": "cpu", "compensation": "ridge", "offload": "never"}[name]
        elif name in ("prune", "layer_selection"):
            value = {"prune": ["num_hidden_layers", "intermediate_size"], "layer_selection": "greedy"}[name]
        elif name in ("benchmark_prompt_length", "benchmark_batch_size"):
            value = (16, 32)
        elif name in ("for_runtime", "profile", "schedule"):
            value = {"for_runtime": "llama.cpp", "profile": "device.json", "schedule": "width,2x(depth)"}[name]
        elif isinstance(default, tuple) or name == "eval_text":
            value = ["x.txt"]
        else:
            value = "text" if name in ("target", "include_path", "base_model", "vocab_keep", "offload_folder") else 3
        config = IShrinkConfig(**{name: value}, **WITH.get(name, {}))
        assert parse(config.command("m", "o")) == config, name


def test_flags_win_over_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: org/m\nnum_hidden_layers: 14\nseed: 3\n")
    config = parse(f"ishrink shrink --config {tmp_path}/r.yaml --seed 4 --output o")
    assert (config.num_hidden_layers, config.seed) == (14, 4)


def test_an_unknown_runtime_names_those_that_exist() -> None:
    with pytest.raises(RequestError, match=r"unknown runtime 'llamacpp' \(did you mean 'llama.cpp'\?\)"):
        IShrinkConfig(for_runtime="llamacpp")


def test_help_has_every_option() -> None:
    text = IShrinkConfig.__doc__ or ""
    assert all(f"{field.name}: " in text for field in fields(IShrinkConfig))


def test_a_config_that_cannot_be_pushed_is_one_line() -> None:
    with pytest.raises(PublishError, match=r"the push of ishrink_config.json to me/x failed \(HF_HUB_OFFLINE is set"):
        IShrinkConfig().push_to_hub("me/x", token="hf_x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sparsity": "2:4", "compensation_for": "q4_0"},
            "sparsity='2:4' sets weights to zero, and rounding them for q4_0",
        ),
        ({"sparsity": "50%", "recovery": "kl", "recovery_for": "q8_0"}, "rounding them for q8_0 changes the others"),
        (
            {"recovery": "kl", "recovery_for": "q4_0", "recovery_ema": 0.9},
            "recovery_for trains quantised weights, whose",
        ),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        IShrinkConfig(**options)
