"""What the documents say runs, and their tables are what the code says."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinker
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.cli.run import main
from optimum_ishrink.cli.verbs import Parser, add_verbs
from optimum_ishrink.configuration import IShrinkConfig, read_recipe
from optimum_ishrink.errors import ArchitectureError
from optimum_ishrink.importance.criterion import UNIT_CRITERIA
from optimum_ishrink.importance.units import units_to_score
from optimum_ishrink.planning.plan import resolve_shape
from optimum_ishrink.report.files import REPORT_SCHEMA
from optimum_ishrink.report.measurement import Comparison, Failure, Measurement, Sample
from optimum_ishrink.report.report import ModelReport, Report
from optimum_ishrink.report.tables import METRICS, format_measurement
from optimum_ishrink.surgery.units import masked_state
from tests.helpers.tiny import SMALL, tiny_tokenizer

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "tables.py"))


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_generated_tables_are_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert TABLES["fill_tables"](text) == text, "run `make tables`"
    assert all(f"<!-- {name} -->" in text for name in TABLES["TABLES"])


def test_recipes_remove_what_the_thesis_removes() -> None:
    rows = TABLES["recipe_rows"]()
    recipes = {path: read_recipe(path) for path in (ROOT / "configs").glob("*.yaml")}
    assert len(rows) == sum("model" in recipe for recipe in recipes.values()) >= 5
    for row in rows:
        assert 13.0 <= float(row[-1].rstrip("%")) <= 17.5, row


def test_recipes_for_any_model_fit_those_that_we_have_the_dimensions_of() -> None:
    dimensions = json.loads((ROOT / "configs" / "dimensions.json").read_text(encoding="utf-8"))
    for name in ("ishrink-thesis", "l2-mlp"):
        config = IShrinkConfig.from_yaml(ROOT / "configs" / f"{name}.yaml")
        for model, raw in dimensions.items():
            _, binding = bind_config(raw)
            shape = resolve_shape(binding, config.request)
            assert 0.145 <= 1 - binding.num_parameters(shape) / binding.num_parameters() <= 0.155, (name, model)
            units_to_score(binding, UNIT_CRITERIA[config.importance], tuple(shape), config.importance_group_size)
            moved = {key for key in shape if shape[key] != binding.shape[key]}
            assert moved == {"intermediate_size"} if name == "l2-mlp" else "num_hidden_layers" in moved
            assert config.request.protection(binding.shape["num_hidden_layers"]) == (4, 2)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_the_documents_parses(path: Path) -> None:
    parser = Parser(prog="ishrink")
    add_verbs(parser)
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(
        r"^\s*(?:optimum-cli )?ishrink (.+)$", "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)), re.M
    ):
        assert parser.parse_args(shlex.split(line, comments=True)).verb


def test_the_quick_start_runs(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    pushed: list[str] = []
    monkeypatch.setattr("optimum_ishrink.api.push_folder", lambda folder, repo_id, **_: pushed.append(repo_id))
    monkeypatch.chdir(tmp_path)
    code = code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(llama_folder))
    exec(compile(code, "README.md", "exec"), {})
    assert len(pushed) == 1
    assert len(list(tmp_path.glob("*/ishrink_report.json"))) == 1


EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "ask.py")  # tests/edge runs that


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_runs(
    path: Path,
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
    }[path.name]
    monkeypatch.setattr(sys, "argv", [path.name, *arguments])
    runpy.run_path(str(path))
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_walk_through_adds_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimum_ishrink.architectures import spec

    monkeypatch.setattr(spec, "_REGISTERED", {})
    monkeypatch.chdir(tmp_path)
    document = ROOT / "docs" / "architectures.md"
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


def test_the_command_line_takes_a_description(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--model", str(llama_folder), "--intermediate-size", "16", "--shape-only"]
    (tmp_path / "odd.json").write_text("{}")
    assert main([*arguments, "--architecture", str(tmp_path / "odd.json")]) == 2
    assert "odd.json is not an architecture description" in capsys.readouterr().err


def test_the_code_knows_no_architecture_by_name() -> None:
    for path in (ROOT / "optimum_ishrink").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                if "help" in path.name or path.name in ("verbs.py", "demo.py"):
                    continue  # examples in help texts
                assert not re.search(r"(?<!x)llama(?!\.cpp|-quantize)|qwen|gemma", node.value.lower()), (
                    f"{path.name}: {node.value[:80]}"
                )


def test_the_readme_shows_the_committed_report() -> None:
    folder = ROOT / "model_cards" / "SmolLM2-135M-Instruct-15"
    report = Report.from_json(json.loads((folder / "ishrink_report.json").read_text(encoding="utf-8")))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for part in ("quality", "speed"):
        for base, shrunk in report.pairs(part):
            assert format_measurement(shrunk) in text, shrunk.metric
            assert base is None or format_measurement(base) in text, shrunk.metric
    assert f"{report.shrunk.params:,}" in text


def test_the_report_is_documented_entry_by_entry() -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    for kind in (Report, ModelReport, Measurement, Comparison, Sample, Failure):
        for entry in fields(kind):
            assert re.search(rf"[`\"]{entry.name}[`\"]", text), f"{kind.__name__}.{entry.name}"
    for metric in METRICS:
        assert f"`{metric}`" in text, metric
    assert f'"schema": {REPORT_SCHEMA}' in text


def test_every_card_is_made_by_this_code() -> None:
    for folder in sorted((ROOT / "model_cards").iterdir()):
        report = Report.from_json(json.loads((folder / "ishrink_report.json").read_text(encoding="utf-8")))
        card = (folder / "README.md").read_text(encoding="utf-8")
        for _, shrunk in report.pairs("quality"):
            assert format_measurement(shrunk) in card
