"""Requests with inputs that cannot be used: each ends in one line, and leaves nothing on the disk."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.damaged import ARCHITECTURES, MODELS, RECIPES, TEXTS, write_damaged
from tests.helpers.refusals import refusal

QUICK = "--calibration text.txt --calibration-samples 4 --calibration-length 16 --no-evaluate --no-benchmark"
SHRINK = f"shrink --model model --output out {QUICK}"
RECOVER = "recover --output out --recovery-data text.txt --recovery-tokens 2000 --recovery-length 16"

READING = {
    "shrink": f"shrink --output out --intermediate-size 16 {QUICK} --model",
    "plan": "plan --intermediate-size 16 --importance l2-norm --model",
    "analyze": "analyze --output out --calibration text.txt --model",
    "recover": f"{RECOVER} --teacher model --model",
    "teacher": f"{RECOVER} --model model --teacher",
    "evaluate": "evaluate --eval-text text.txt --eval-samples 2 --eval-length 16 --model",
    "evaluate-base": "evaluate --eval-text text.txt --eval-samples 2 --eval-length 16 --model model --base",
    "benchmark": "benchmark --benchmark-prompt-length 4 --benchmark-rounds 1 --model",
    "export": "export --output out.gguf --model",
    "chat": "chat --prompt Hello --model",
    "chat-base": "chat --prompt Hello --model model --base",
}
"""Commands that read a checkpoint, up to its name."""

LONG = 300 * "x"

UNREAD = {
    ("plan", "half-a-tokenizer"),  # weights alone are scored
    ("benchmark", "half-a-tokenizer"),  # any tokens are timed
}


@pytest.fixture(scope="module")
def inputs(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_damaged(tmp_path_factory.mktemp("inputs"), llama_folder)


@pytest.fixture(autouse=True)
def untouched(inputs: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Run in the folder of the inputs, and check that nothing was added to it."""
    monkeypatch.chdir(inputs)
    before = sorted(inputs.rglob("*"))
    yield
    assert sorted(inputs.rglob("*")) == before


# All verbs open a checkpoint in one place: every damage is shown to `shrink`, and every verb some of them.
@pytest.mark.parametrize(
    ("verb", "name"),
    [
        (verb, name) if verb == "shrink" or (i + j) % 5 == 0 else pytest.param(verb, name, marks=pytest.mark.slow)
        for i, verb in enumerate(READING)
        for j, name in enumerate(MODELS)
    ],
)
def test_a_damaged_checkpoint(verb: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if (verb, name) in UNREAD:
        pytest.skip("is not read")
    assert refusal([*shlex.split(READING[verb]), name], capsys, notes=True)
    if verb in ("shrink", "analyze"):
        assert MODELS[name][1] in refusal([*shlex.split(READING[verb]), name], capsys)


@pytest.mark.parametrize("verb", READING)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "cannot open model 'nowhere': not a local folder, not in the cache"),
        ("nothing", "nothing holds no config.json"),
        ("file", "file is a file; give the folder that holds the checkpoint"),
        ("a/b/c", "a/b/c does not exist"),
    ],
)
def test_no_checkpoint(verb: str, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal([*shlex.split(READING[verb]), name], capsys)


@pytest.mark.parametrize("name", [*TEXTS, "nowhere.txt", "nothing", "org/none", ","])
@pytest.mark.parametrize(
    "command",
    [
        f"{SHRINK} --intermediate-size 16 --calibration",
        "evaluate --model model --eval-samples 4 --eval-length 16 --eval-text",
        f"{RECOVER} --model model --teacher model --recovery-data",
        "analyze --model model --output out --calibration text.txt --calibration-samples 4 --calibration-length 16 "
        "--analysis-text",
    ],
    ids=lambda command: command.split()[0],
)
def test_a_text_that_cannot_be_used(command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = refusal([*shlex.split(command), name], capsys, notes=True)
    if name in TEXTS:
        assert TEXTS[name][1] in found


@pytest.mark.parametrize("name", [*RECIPES, "nowhere.yaml"])
def test_a_recipe_that_cannot_be_used(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = RECIPES[name][1] if name in RECIPES else "recipe nowhere.yaml does not exist"
    assert message in refusal([*shlex.split(SHRINK), "--config", name], capsys)


@pytest.mark.parametrize("name", [*ARCHITECTURES, "nowhere.json"])
def test_a_description_that_is_none(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*shlex.split(SHRINK), "--intermediate-size", "16", "--architecture", name]
    assert f"{name} is not an architecture description: " in refusal(words, capsys)


@pytest.mark.parametrize("verb", ["shrink --intermediate-size 16", "recover --teacher model", "analyze"])
@pytest.mark.parametrize(
    ("output", "message"),
    [
        (".", "is not empty; name another folder or pass --overwrite"),
        ("..", "is not empty"),
        ("/", "is a mount point, which cannot be replaced"),
        ("model", "is not empty"),
        ("model --overwrite", "the output folder .* is the input"),
        (". --overwrite", "holds it, and would be replaced"),
        ("file", "file is a file; name a folder"),
        ("file/x", "file is a file; name another folder"),
    ],
)
def test_an_output_that_cannot_be(verb: str, output: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(f"{verb} --model model --output {output}")
    assert re.search(message, refusal(words, capsys)), message


@pytest.mark.parametrize(
    ("command", "message"),
    [
        *(
            (f"{SHRINK} --target {target}", f"target '{target}' is not of the form 'params=-15%' or 'params=115M'")
            for target in ("15%", "params", "params=-15", "params=15%", "params=-x%", "layers=-10%", "params=1e9")
        ),
        (f"{SHRINK} --target params=-0%", "requests 53,280 parameters; the model has 53,280"),
        (f"{SHRINK} --target params=0", "requests 0 parameters"),
        (
            f"{SHRINK} --target params=-99.9%",
            "no shape lies within 0.5% of 'params=-99.9%' (53 parameters); ",
        ),
        (f"{SHRINK} --num-hidden-layers 5", "is not between 1 and the model's 4; nearest num_hidden_layers: 4"),
        (f"{SHRINK} --num-hidden-layers 4", "the requested shape is the model's own"),
        (f"{SHRINK} --num-key-value-heads 3", "allow_class_change would write it as mistral"),
        (f"{SHRINK} --num-attention-heads 7", "is not a multiple of num_key_value_heads=4; nearest"),
        (f"{SHRINK} --intermediate-size 25", "is not between 1 and the model's 24"),
        (f"{SHRINK} --num-hidden-layers 1 --keep-first-layers 2", "is fewer than the 2 first and 0 last layers"),
        (
            f"{SHRINK} --num-hidden-layers 3 --keep-first-layers 3 --keep-last-layers 3",
            "protect more than the",
        ),
        (f"{SHRINK} --prune num_hidden_layers", "say what to shrink: one of "),
        (f"{SHRINK} --intermediate-size 16 --dtype int4", "unknown dtype 'int4'"),
        (f"{SHRINK} --intermediate-size 16 --eval-text text.txt --evaluate", "unknown argument '--evaluate'"),
        (f"{SHRINK} --intermediate-size 16 --recovery kl --recovery-teacher nowhere", "cannot open model 'nowhere'"),
        (f"{SHRINK} --intermediate-size 16 --push-to-hub 'a b' --dry-run", "cannot be a repository on the Hub"),
        ("shrink --model model", "name the output folder with --output, or pass --dry-run"),
        ("shrink --output out", "name the model: --model with a Hub id or folder"),
        (f"{SHRINK} --intermediate-size 16 --seed 4294967296", "seed must be at most 4294967295, not 4294967296"),
        (f"plan --model {LONG} --intermediate-size 16 --shape-only", "is too long for the name of a folder"),
        (f"plan --model model --intermediate-size 16 --output {LONG}", "File name too long; name another file"),
        (f"export --model model --output {LONG}.gguf", "File name too long; name another file"),
        ("plan --model model --intermediate-size 16 --output model", "model is a folder; name a file in it"),
        ("plan --model model --intermediate-size 16 --output file", "file already exists; name another file"),
        ("plan --model model --intermediate-size 16 --output nowhere/x", "nowhere is not a folder; create it first"),
        ("plan --model model --intermediate-size 16 --output x --shape-only", "--shape-only chooses nothing"),
        ("recover --model model --output out --recovery none", "--recovery none trains nothing; name a loss"),
        (f"{RECOVER} --model model", "pass --teacher with the unpruned model"),
        ("evaluate --model model --tasks a --include-path nowhere", "include_path nowhere is not a folder"),
        ("evaluate --model model --eval-text self", "eval_text cannot be 'self'"),
        ("benchmark --model model --runtime onnx", "unknown runtime 'onnx'; allowed: llama.cpp, pytorch"),
        ("benchmark --model model --threads 2", "are read by runtime='llama.cpp' alone"),
        ("benchmark --model model --benchmark-prompt-length 9999", "are together more than the model's 512 positions"),
        ("export --model model --output x.bin", "does not end in .gguf"),
        ("export --model model --output nowhere/x.gguf", "nowhere is not a folder; create it first"),
        ("export --model model --output model", "model is a folder; name a file in it"),
        ("export --model model --output file", "already exists; name another file or pass --overwrite"),
        ("export --model model --output x.gguf --quantization q9", "unknown quantization 'q9'; allowed: "),
        ("export --model model --output x.gguf --quantization int8", "pass --format safetensors"),
        ("export --model model --output x.gguf --group-size 32", "--group-size belongs to --format safetensors"),
        ("export --model model --output x --format safetensors --quantization q8_0", "pass --format gguf"),
        ("export --model model --output x --format safetensors --keep-layers 99", "the model has no layer 99"),
        ("export --model model --output x --format safetensors --analysis nothing", "analysis.json does not exist"),
        ("export --model model --output x --format onnx", "unknown format 'onnx'"),
        ("shrink --model nothing --gguf-file x.gguf --output out --target params=-9%", "nothing holds no 'x.gguf'"),
        ("card --model model", "model/ishrink_report.json does not exist"),
        ("card --model file", "file/ishrink_report.json does not exist"),
        ("report nowhere", "nowhere does not exist; name output folders of shrink or recover"),
        ("report model", "model is not an output folder of shrink or recover"),
        ("report model model", "model is given twice"),
        ("report file", "file is not JSON"),
        ("push --model nothing --repo-id me/x", "nothing is not a checkpoint folder: it has no config.json"),
        ("push --model list-config --repo-id me/x", "names no model_type; push a checkpoint folder"),
        ("push --model half-the-weights --repo-id me/x", "is not a complete safetensors file"),
        *(
            (f"push --model model --repo-id {name}", "cannot be a repository on the Hub; write user/name")
            for name in ("'a b'", "a/b/c", "''", "me/--x", "x..y", "me/" + 99 * "x")
        ),
        (
            "push --model model --repo-id me/x --private --private-until-complete",
            "not allowed with argument",
        ),
        ("demo --output out --target 15%", "is not of the form"),
        ("demo --output out --recovery lk", "unknown loss 'lk'"),
        ("shrnk", "invalid choice: 'shrnk'"),
        ("--nothing", "unknown argument '--nothing'"),
        *(
            (verb, "are required: ")
            for verb in ("recover", "analyze", "evaluate", "benchmark", "export", "card", "push")
        ),
    ],
)
def test_a_request_that_cannot_be_met(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(shlex.split(command), capsys)


@pytest.mark.parametrize("name", ["half.gguf", "text.gguf"])
def test_a_file_that_is_no_gguf(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(f"shrink --model . --gguf-file {name} --output out --intermediate-size 16")
    assert re.search(rf"{re.escape(name)} (is not a|as) GGUF", refusal(words, capsys, notes=True))
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    assert name in refusal(["benchmark", "--runtime", "llama.cpp", "--model", name], capsys)
