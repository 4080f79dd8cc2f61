"""What the documents say runs, and their tables are what the code says."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import optimum_ishrink
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.cli.parser import Parser, add_verbs
from optimum_ishrink.configuration import IShrinkConfig, read_recipe
from optimum_ishrink.importance.criterion import UNIT_CRITERIA
from optimum_ishrink.importance.units import units_to_score
from optimum_ishrink.planning.shape import resolve_shape
from optimum_ishrink.report.compensation import CompensationRecord, ProjectionRepair
from optimum_ishrink.report.environment import Environment
from optimum_ishrink.report.files import SCHEMA
from optimum_ishrink.report.measurement import Comparison, Failure, Measurement, Sample, SpeedComparison
from optimum_ishrink.report.origin import Origin
from optimum_ishrink.report.plan import CalibrationRecord, Choice, Plan
from optimum_ishrink.report.recovery import RecoveryRecord
from optimum_ishrink.report.report import ModelReport, Report
from optimum_ishrink.report.sparsity import KindOfMatrix, SparsityPlan, SparsityRecord
from optimum_ishrink.report.stages import StageRecord
from optimum_ishrink.report.tables import METRICS, format_measurement
from optimum_ishrink.report.tied_head import HeadRecord
from optimum_ishrink.report.vocabulary import TokensPerByte, VocabularyRecord

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/edge.md")),
    *PAGES,
]
GENERATE: dict[str, Any] = runpy.run_path(str(DOCS / "generate.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_generated_pages_and_tables_are_up_to_date() -> None:
    assert GENERATE["stale"]() == [], "run `make tables`"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in text for name in GENERATE["TABLES"])


def test_a_public_name_without_documentation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(ValueError):
        def method(self) -> None: ...

    monkeypatch.setattr(optimum_ishrink, "__all__", [*optimum_ishrink.__all__, "Bare"])
    monkeypatch.setattr(optimum_ishrink, "Bare", Bare, raising=False)
    with pytest.raises(ValueError, match=r"without a docstring: Bare, Bare\.method$"):
        GENERATE["python_api_page"]()


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (
        re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)).strip().lower() for title in titles
    )
    return {re.sub(r"[\s-]+", "-", title) for title in plain}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        place, _, anchor = target.partition("#")
        found = (path.parent / place).resolve() if place else path
        assert found.is_file(), target
        if DOCS in path.parents:
            assert DOCS in found.parents, f"{target} is not part of the site"
        assert not anchor or anchor in slugs(found), target


def test_the_index_and_the_navigation_name_every_page() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        place = page.relative_to(DOCS).as_posix()
        assert place in navigation
        assert place == "index.md" or f"]({place})" in index, place


def test_troubleshooting_quotes_messages_that_the_code_has() -> None:
    """A quoted message is split at its `...`; each part has to be in one string of the source."""
    texts: set[str] = set()
    for path in (ROOT / "optimum_ishrink").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.add(node.value)
    source = "\n".join(texts)
    headings = re.findall(r"^### (.+)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) > 50
    for heading in headings:
        assert re.fullmatch(r"`[^`]+`", heading), heading
        for part in (part.strip(" ,:;()") for part in heading.strip("`").split("...")):
            # `unknown KIND` is put together from its kind.
            assert part in source or part.removeprefix("unknown ") in texts, f"{part!r} of {heading}"


def test_recipes_remove_what_the_thesis_removes() -> None:
    rows = GENERATE["recipe_rows"]()
    recipes = {path: read_recipe(path) for path in (ROOT / "configs").glob("*.yaml")}
    assert len(rows) == sum("model" in recipe for recipe in recipes.values()) >= 5
    for row in rows:
        large = 13.0 if "gemma" not in row[1] else 20.0
        assert large <= float(row[-1].rstrip("%")) <= (17.5 if "gemma" not in row[1] else 50.0), row


def test_recipes_for_any_model_fit_those_that_we_have_the_dimensions_of() -> None:
    dimensions = json.loads((ROOT / "configs" / "dimensions.json").read_text(encoding="utf-8"))
    for name in ("ishrink-thesis", "l2-mlp"):
        config = IShrinkConfig.from_yaml(ROOT / "configs" / f"{name}.yaml")
        for model, raw in dimensions.items():
            _, binding = bind_config(raw)
            shape = resolve_shape(binding, config)
            assert 0.145 <= 1 - binding.num_parameters(shape) / binding.num_parameters() <= 0.155, (name, model)
            units_to_score(binding, UNIT_CRITERIA[config.importance], tuple(shape), config.importance_group_size)
            moved = {key for key in shape if shape[key] != binding.shape[key]}
            assert moved == {"intermediate_size"} if name == "l2-mlp" else "num_hidden_layers" in moved
            assert config.protection(binding.shape["num_hidden_layers"]) == (4, 2)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_in_the_documents_parses(path: Path) -> None:
    parser = Parser(prog="ishrink")
    add_verbs(parser)
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    code = "\n".join([*re.findall(r"```\w*\n(.*?)```", text, re.DOTALL), *re.findall(r"^    .+$", text, re.MULTILINE)])
    for line in re.findall(
        r"^\s*(?:optimum-cli ishrink|ishrink|torchrun .*-m optimum_ishrink) (.+)$", code, re.MULTILINE
    ):
        assert parser.parse_args(shlex.split(line, comments=True)).verb


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
                if "help" in path.name or path.name in ("parser.py", "verbs.py", "options.py", "demo.py"):
                    continue  # examples in help texts
                assert not re.search(
                    r"(?<!x)llama(?!\.cpp|-quantize|-cli|-gguf-split|[-_]bench|_server)|qwen|gemma", node.value.lower()
                ), f"{path.name}: {node.value[:80]}"


def test_the_readme_shows_the_committed_report() -> None:
    folder = ROOT / "model_cards" / "SmolLM2-135M-Instruct-15"
    report = Report.from_json(json.loads((folder / "ishrink_report.json").read_text(encoding="utf-8")))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = 0
    for part in ("quality", "speed"):
        for base, shrunk in report.pairs(part):
            if shrunk.metric not in GENERATE["DECISIVE"]:
                continue
            assert format_measurement(shrunk) in text, shrunk.metric
            assert base is None or format_measurement(base) in text, shrunk.metric
            shown += 1
    assert shown == 4
    assert f"{report.shrunk.params / 1e6:.1f}" in text
    recovered = ROOT / "model_cards" / "SmolLM2-135M-Instruct-15-recovered" / "ishrink_report.json"
    quality = Report.from_json(json.loads(recovered.read_text(encoding="utf-8"))).shrunk.quality
    assert all(format_measurement(each) in text for each in quality if each.metric in GENERATE["DECISIVE"])


RECORDS = (
    *(Report, ModelReport, Measurement, Comparison, Sample, Failure, SpeedComparison, Environment),
    *(Origin, CompensationRecord, ProjectionRepair, RecoveryRecord, Plan, Choice, CalibrationRecord),
    *(VocabularyRecord, TokensPerByte, HeadRecord, SparsityPlan, SparsityRecord, KindOfMatrix, StageRecord),
)


def test_report_and_plan_are_documented_entry_by_entry() -> None:
    text = (ROOT / "docs" / "reference" / "report.md").read_text(encoding="utf-8")
    for kind in RECORDS:
        for entry in fields(kind):
            assert re.search(rf"[`\"]{entry.name}[`\"]", text), f"{kind.__name__}.{entry.name}"
    for metric in METRICS:
        assert f"`{metric}`" in text, metric
    assert f'"schema": {SCHEMA}' in text


def test_every_card_is_made_by_this_code() -> None:
    for folder in sorted((ROOT / "model_cards").iterdir()):
        report = Report.from_json(json.loads((folder / "ishrink_report.json").read_text(encoding="utf-8")))
        card = (folder / "README.md").read_text(encoding="utf-8")
        for _, shrunk in report.pairs("quality"):
            assert format_measurement(shrunk) in card
