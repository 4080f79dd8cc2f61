"""Do older and newer transformers read what this package writes?

    make compat

Cuts tiny checkpoints whose config.json is spelled as older versions spell it, makes an environment for each version of
transformers, loads the checkpoints there with nothing else installed, and compares the logits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker
from tests.helpers.tiny import edit_json, save_tiny, tiny_config

MODELS = ("llama", "qwen2", "qwen3", "gemma3_text", "phi3")
VERSIONS = ("transformers==4.57.*", "transformers>=5")
IDS = list(range(3, 15))

READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), (folder, info)
    with torch.no_grad():
        logits = model(torch.tensor([json.loads(sys.stdin.readline())])).logits
    print(json.dumps([transformers.__version__, logits.flatten().tolist()]))
"""


def write_checkpoints(folder: Path) -> list[Path]:
    """Cut one tiny model of each architecture, from a source that older versions wrote."""
    written = []
    for model_type in MODELS:
        base = save_tiny(folder / f"{model_type}-base", tiny_config(model_type))
        old = {"rope_theta": 50_000.0, "torch_dtype": "float32", "rope_parameters": None, "dtype": None}
        if model_type == "gemma3_text":
            old["rope_local_base_freq"] = 10_000.0
        edit_json(base / "config.json", **old)
        shape: dict[str, Any] = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16}
        how: dict[str, Any] = {
            "importance": "l2-norm",
            "layer_importance": "l2-norm",
            "evaluate": False,
            "benchmark": False,
        }
        IShrinker.from_pretrained(base).shrink(save_directory=folder / model_type, **shape, **how)
        kept = json.loads((folder / model_type / "config.json").read_text())
        assert kept["rope_theta"] == 50_000.0 and kept["torch_dtype"] == "float32", kept
        written.append(folder / model_type)
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
                model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
                expected.append(model(torch.tensor([IDS])).logits.flatten())
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
            for checkpoint, line, logits in zip(checkpoints, done.stdout.splitlines(), expected, strict=True):
                version, got = json.loads(line)
                difference = (torch.tensor(got) - logits).abs().max().item()
                failed |= difference > 1e-4
                print(f"transformers {version}, {checkpoint.name}: largest difference of a logit {difference:.1e}")
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
