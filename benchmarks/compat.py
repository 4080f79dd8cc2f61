"""Do older and newer transformers read what this package writes?

    make compat

Cuts tiny models of every kind of source, makes an environment for each version of transformers, loads the results
there with nothing else installed, and compares logits and token ids. The sources are folders whose config.json is
spelled as older versions spell it; models in memory, of every architecture and with every kind of rotary scaling that
the older version computes; and GGUF files, one with the demo's shape: a tied llama of grouped heads with another base.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_ishrink import IShrinker
from tests.helpers.edge_models import save_edge
from tests.helpers.older_versions import memory_configs, tokenizer_with_extra_tokens
from tests.helpers.tiny import edit_json, save_tiny, tiny_config, tiny_model

MODELS = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3")
VERSIONS = ("transformers==4.57.*", "transformers>=5")
IDS = list(range(3, 15))

TEXT = "Gate <|call|> 9"
HOW: dict[str, Any] = {
    "importance": "l2-norm",
    "layer_importance": "l2-norm",
    "compensation": "none",
    "evaluate": False,
    "benchmark": False,
}

TOLERANCE = {"apertus": 5e-2}
"""Largest difference of a logit. The activation of apertus computes in other dtypes in version 5; all others: 1e-4."""

READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
def read(folder, ids):
    # eager: the default of 4.57 leaves out the soft caps of gemma2
    how = dict(dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    model, info = AutoModelForCausalLM.from_pretrained(folder, **how)
    tokens = AutoTokenizer.from_pretrained(folder)("Gate <|call|> 9")["input_ids"]
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits.flatten().tolist(), tokens, ""]
for folder in sys.argv[1:]:
    ids = json.loads(sys.stdin.readline())
    try:
        found = read(folder, ids)
    except Exception as error:
        found = [[], [], f"{type(error).__name__}: {error}"]
    print(json.dumps([transformers.__version__, *found]))
"""


def write_checkpoints(folder: Path) -> list[Path]:
    """Cut one tiny model of each kind of source, and return the folders."""
    return [*_from_folders(folder), *_from_memory(folder), *_from_gguf(folder)]


def _from_folders(folder: Path) -> list[Path]:
    """Cut one tiny model of each architecture, from a source that older versions wrote."""
    written = []
    for model_type in MODELS:
        base = save_tiny(folder / f"{model_type}-base", tiny_config(model_type))
        old = {"rope_theta": 50_000.0, "torch_dtype": "float32", "rope_parameters": None, "dtype": None}
        if model_type == "gemma3_text":
            old["rope_local_base_freq"] = 10_000.0
        edit_json(base / "config.json", **old)
        edit_json(base / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
        shape: dict[str, Any] = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16}
        IShrinker.from_pretrained(base).shrink(save_directory=folder / f"folder-{model_type}", **shape, **HOW)
        kept = json.loads((folder / f"folder-{model_type}" / "config.json").read_text())
        assert kept["rope_theta"] == 50_000.0 and kept["torch_dtype"] == "float32", kept
        written.append(folder / f"folder-{model_type}")
    return written


def _from_memory(folder: Path) -> list[Path]:
    """Cut every architecture from memory, with every kind of rotary scaling."""
    written = []
    tokenizer = tokenizer_with_extra_tokens()
    for name, config in memory_configs():
        target = folder / f"memory-{name}"
        shrinker = IShrinker.from_pretrained(tiny_model(config), tokenizer=tokenizer)
        shrinker.shrink(save_directory=target, num_hidden_layers=3, **HOW)
        written.append(target)
    return written


def _from_gguf(folder: Path) -> list[Path]:
    """Cut GGUF files: a plain one, and one of the demo's kind."""
    written = []
    rotary = {"rope_type": "default", "rope_theta": 100_000.0}
    for name, changes in {"plain": {}, "demo": {"rope_parameters": rotary, "tie_word_embeddings": True}}.items():
        base = save_edge(folder / f"gguf-{name}-base", **changes)
        (folder / f"gguf-{name}-file").mkdir()
        file = folder / f"gguf-{name}-file" / "base.gguf"
        IShrinker.from_pretrained(base).export(file, quantization="f16", verify=False, threads=1)
        target = folder / f"gguf-{name}"
        shrinker = IShrinker.from_pretrained(folder / f"gguf-{name}-file", gguf_file="base.gguf")
        shrinker.shrink(save_directory=target, num_hidden_layers=3, **HOW)
        written.append(target)
    return written


def make_environment(folder: Path, requirement: str) -> Path:
    """Make a virtual environment with one version of transformers, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"torch=={torch.__version__.split('+')[0]}"], check=True)
    subprocess.run([*pip, requirement], check=True)
    return folder / "bin" / "python"


def main() -> None:
    """Run the comparison; leave with status 1 when any logits differ."""
    with tempfile.TemporaryDirectory(prefix="compat-") as name:
        folder = Path(name)
        checkpoints = write_checkpoints(folder)
        expected = []
        for checkpoint in checkpoints:
            with torch.no_grad():
                model = AutoModelForCausalLM.from_pretrained(
                    checkpoint, dtype=torch.float32, attn_implementation="eager"
                )
                tokens = AutoTokenizer.from_pretrained(checkpoint)(TEXT)["input_ids"]
                expected.append((model(torch.tensor([IDS])).logits.flatten(), tokens))
        failed = False
        for number, requirement in enumerate(VERSIONS):
            python = make_environment(folder / f"env-{number}", requirement)
            lines = f"{json.dumps(IDS)}\n" * len(checkpoints)
            run = [str(python), "-c", READ, *map(str, checkpoints)]
            done = subprocess.run(run, input=lines, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{requirement}: {done.stderr[-1500:]}")
                failed = True
                continue
            for checkpoint, line, (logits, tokens) in zip(
                checkpoints, done.stdout.splitlines(), expected, strict=True
            ):
                version, got, got_tokens, error = json.loads(line)
                if error:
                    print(f"transformers {version}, {checkpoint.name}: {' '.join(error.split())[:300]}")
                    failed = True
                    continue
                difference = (torch.tensor(got) - logits).abs().max().item()
                limit = next((TOLERANCE[each] for each in TOLERANCE if each in checkpoint.name), 1e-4)
                wrong = "" if got_tokens == tokens else f"; token ids {got_tokens} instead of {tokens}"
                failed |= not difference <= limit or bool(wrong)
                found = f"largest difference of a logit {difference:.1e}{wrong}"
                print(f"transformers {version}, {checkpoint.name}: {found}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
