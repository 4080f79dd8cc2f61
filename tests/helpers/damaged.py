"""Checkpoints and files that cannot be used, each with what is said about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Damage = Callable[[Path], object]


def _bytes(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def _config(**changes: object) -> Damage:
    def change(folder: Path) -> None:
        raw = json.loads((folder / CONFIG).read_text())
        raw.update(changes)
        (folder / CONFIG).write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))

    return change


def _index(text: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(text)

    return change


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")


def _half(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


MODELS: Mapping[str, tuple[Damage, str]] = {
    "no-config": (lambda folder: (folder / CONFIG).unlink(), "holds no config.json"),
    "half-a-config": (_bytes(CONFIG, b"{"), "config.json is not"),
    "empty-config": (_bytes(CONFIG, b""), "config.json is not"),
    "binary-config": (_bytes(CONFIG, b"\xff\xfe\x00"), "config.json is not"),
    "list-config": (_bytes(CONFIG, b"[]"), "config.json is not a JSON object"),
    "no-type": (_config(model_type=...), "config.json has no model_type"),
    "other-type": (_config(model_type="nothing"), "unknown architecture 'nothing'; allowed: "),
    "encoder": (_config(model_type="bert"), "unknown architecture 'bert'"),
    "remote-code": (
        _config(model_type="mine", auto_map={"AutoModelForCausalLM": "x.Y"}),
        "needs remote code",
    ),
    "quantized": (
        _config(quantization_config={"quant_method": "gptq"}),
        "already quantised (gptq); prune the",
    ),
    "other-width": (_config(intermediate_size=25), "as [24, 32]; its config expects [25, 32]"),
    "text-width": (_config(intermediate_size="wide"), "class refuses this config.json"),
    "null-layers": (_config(num_hidden_layers=None), "class refuses this config.json"),
    "more-layers": (_config(num_hidden_layers=9), "lacks 45 tensors that its config expects"),
    "no-weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds neither model.safetensors nor"),
    "half-the-weights": (_half, "is not a complete safetensors file"),
    "empty-weights": (_bytes(WEIGHTS, b""), "is not a complete safetensors file"),
    "pickle": (_pickle, "holds its weights only as pickle (pytorch_model.bin), which can run code"),
    "index-of-nothing": (_index('{"weight_map": {"a": "no.safetensors"}}'), "names no.safetensors, which is missing"),
    "index-outside": (_index('{"weight_map": {"a": "../no.safetensors"}}'), "model.safetensors.index.json"),
    "list-index": (_index("[]"), "is not a safetensors index; download it again"),
    "half-a-tokenizer": (_bytes("tokenizer.json", b"{"), "holds no usable tokenizer"),
}
"""Damaged folders by name: what is done to a good one, and what a refusal of it contains."""

TEXTS: Mapping[str, tuple[bytes, str]] = {
    "empty.txt": (b"", "empty.txt"),
    "short.txt": (b"two words", "short.txt gives "),
    "half.jsonl": (b'{"text": "a"}\n{"text": \n', "half.jsonl line 2 is not JSON"),
    "numbers.jsonl": (b"1\n", "numbers.jsonl line 1 is not a row"),
    "other-keys.jsonl": (b'{"words": "a"}\n', "other-keys.jsonl line 1 is not a row"),
}
"""Texts that cannot be used by name: what they hold, and what a refusal of them contains."""

RECIPES: Mapping[str, tuple[bytes, str]] = {
    "other-key.yaml": (b"num_layers: 3\n", "unknown config key 'num_layers' (did you mean 'num_hidden_layers'?)"),
    "list.yaml": (b"- a\n", "is not a list of 'name: value' lines"),
    "empty.yaml": (b"", "is not a list of 'name: value' lines"),
    "number.yaml": (b"1: 2\n", "is not a list of 'name: value' lines"),
    "bracket.yaml": (b"a: [\n", "is not YAML"),
    "tab.yaml": (b"target:\n\t- x\n", "is not YAML"),
    "binary.yaml": (b"\xff\xfe\x00\x01", "is not YAML"),
    "word.yaml": (b"seed: many\n", "seed must be a whole number of at least 0, not 'many'"),
    "date.yaml": (b"seed: 2020-01-01\n", "seed must be a whole number of at least 0"),
    "nested.yaml": (b"pruning:\n  seed: 1\n", "unknown config key 'pruning' (did you mean 'prune'?)"),
    "twice.yaml": (b"seed: 1\nseed: 2\n", "has 'seed' twice; leave out one"),
}
"""Recipes that cannot be used by name: what they hold, and what a refusal of them contains."""

ARCHITECTURES: Mapping[str, bytes] = {"half.json": b"{", "empty.json": b"{}", "list.json": b"[]", "text.json": b'"a"'}
"""Descriptions of architectures that are none."""


def write_damaged(folder: Path, model: Path) -> Path:
    """Write all of them into a folder, with a good `model`, a good `text.txt`, an empty folder and a file."""
    shutil.copytree(model, folder / "model")
    for name, (damage, _) in MODELS.items():
        shutil.copytree(model, folder / name)
        damage(folder / name)
    for files in (TEXTS, RECIPES):
        for name, (data, _) in files.items():
            (folder / name).write_bytes(data)
    for name, data in ARCHITECTURES.items():
        (folder / name).write_bytes(data)
    (folder / "text.txt").write_text("Some words on a line.\n" * 200)
    (folder / "nothing").mkdir()
    (folder / "file").write_text("x")
    (folder / "half.gguf").write_bytes(b"GGUF")
    (folder / "text.gguf").write_bytes(b"no GGUF at all")
    return folder
