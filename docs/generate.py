"""The pages and tables that come from the code: `make tables` writes them, a test says when they are stale.

Each generated page is one function in `PAGES`, each generated part of another document one in `TABLES`.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import optimum_ishrink
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.cli.parser import Parser, add_verbs
from optimum_ishrink.configuration import IShrinkConfig, read_recipe
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.core.table import Row, markdown_table
from optimum_ishrink.importance.criterion import EXPERT_CRITERIA, LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.planning.shape import resolve_shape
from optimum_ishrink.recovery.loss_registry import LOSSES
from optimum_ishrink.report.files import REPORT_FILE
from optimum_ishrink.report.measurement import Measurement
from optimum_ishrink.report.report import Report
from optimum_ishrink.report.tables import METRICS, format_measurement

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = "<!-- Generated from the code by docs/generate.py; `make tables` writes it. Do not edit. -->"


# --- tables in README.md ---

CARDS = ("SmolLM2-135M-Instruct-15", "SmolLM2-135M-Instruct-15-recovered")
DECISIVE = ("kl_divergence", "bits_per_byte", "prefill_tokens_per_second", "decode_tokens_per_second")
"""What the README shows besides the two sizes; the cards have the rest."""


def measured_table() -> str:
    """Return the six rows that decide, of the two committed reports at -15 %: as cut, and recovered.

    Quality is shown side by side because both reports measured the same windows, with the same figures for the base.
    Speed was timed against the base within each run, so the recovered column shows that run's ratio, and only when it
    timed the same setting.

    Raises:
        ValueError: The reports are about different bases or windows, so that one table cannot hold them.
    """
    cut, recovered = (Report.from_json(read_json(ROOT / "model_cards" / card / REPORT_FILE)) for card in CARDS)
    assert cut.base is not None
    if (recovered.base is None) or (cut.base.params, cut.base.bytes) != (recovered.base.params, recovered.base.bytes):
        raise ValueError("the two cards have different bases")
    rows: list[Row] = []
    for name, attribute, divisor in (("parameters, million", "params", 1e6), ("weights, MB", "bytes", 1e6)):
        base, *sizes = (getattr(model, attribute) for model in (cut.base, cut.shrunk, recovered.shrunk))
        rows.append((name, "", f"{base / divisor:.1f}", *(f"{x / divisor:.1f} (x{x / base:.3f})" for x in sizes)))
    omitted: set[str] = set()
    for metric in DECISIVE:
        part = "speed" if metric.endswith("per_second") else "quality"
        before, after = next(pair for pair in cut.pairs(part) if pair[1].metric == metric)
        also_before, also = next(pair for pair in recovered.pairs(part) if pair[1].metric == metric)
        old = "0 (by definition)" if before is None else format_measurement(before)
        if part == "quality":
            if (before and before.value, after.dataset, after.n) != (
                also_before and also_before.value,
                also.dataset,
                also.n,
            ):
                raise ValueError(f"the two cards measured {metric} on different windows")
            cells = tuple(format_measurement(x) + _ratio(before, x) for x in (after, also))
        else:
            ratio = _ratio(also_before, also).strip(" ()")
            same = after.dataset == also.dataset
            cells = (format_measurement(after) + _ratio(before, after), ratio if same else "same shape")
            omitted |= set() if same else {also.dataset}
        rows.append((METRICS[metric], str(after.n), old, *cells))
    notes = [
        f"Text: {next(cut.pairs('quality'))[1].dataset}, which nothing was calibrated or trained on; "
        f"timing: {next(cut.pairs('speed'))[1].dataset}, both models taking turns token by token.",
        "n counts windows of text or rounds of timing. ± is one standard error; brackets are quartiles; x is the "
        "ratio to the base.",
    ]
    if omitted:
        notes.append(
            "Recovery changes weights, not shapes; its card timed another setting "
            f"({', '.join(sorted(omitted))}), so its speeds are left out here."
        )
    threads = cut.environment.threads
    where = f"{threads} CPU thread{'s' if threads != 1 else ''}, {cut.environment.dtype}"
    header = (f"SmolLM2-135M-Instruct, {where}", "n", "base", "-15 %, as cut", "-15 %, recovered")
    return markdown_table(header, rows) + "\n\n" + "\n".join(notes)


def _ratio(before: Measurement | None, after: Measurement) -> str:
    found = after.versus_base
    if found is not None:
        return f" (x{found.ratio:.3f}, {found.verdict})"
    return f" (x{after.value / before.value:.3f})" if before is not None else ""


TABLES = {"measured": measured_table}


def fill_tables(text: str) -> str:
    """Return a document with its generated tables renewed; each is between `<!-- NAME -->` and `<!-- /NAME -->`.

    Args:
        text: The document, in Markdown.
    """
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start in text:
            before, rest = text.split(start)
            text = f"{before}{start}\n{table()}\n\n{end}{rest.split(end)[1]}"
    return text


# --- pages of the reference ---


def recipe_rows() -> list[Row]:
    """Return (recipe, model, parameters before, after, removed) of every recipe, planned without weights.

    `configs/dimensions.json` holds the config.json of every model that a recipe names. Recipes that name none are for
    any model, and not in the table.
    """
    folder = ROOT / "configs"
    dimensions: dict[str, Any] = json.loads((folder / "dimensions.json").read_text(encoding="utf-8"))
    rows: list[Row] = []
    for path in sorted(folder.glob("*.yaml")):
        model = read_recipe(path).get("model")
        if model is None:
            continue
        _, binding = bind_config(dimensions[model])
        before = binding.num_parameters()
        after = binding.num_parameters(resolve_shape(binding, IShrinkConfig.from_yaml(path)))
        rows.append(
            (f"`configs/{path.name}`", model, f"{before:,}", f"{after:,}", f"{100 * (1 - after / before):.2f}%")
        )
    return rows


def recipes_page() -> str:
    """Return the recipes with what they remove."""
    presets = [path.name for path in sorted((ROOT / "configs").glob("*.yaml")) if "model" not in read_recipe(path)]
    return f"""# Recipes

A recipe is a YAML file whose keys are those of [`IShrinkConfig`](configuration.md), and `model`. Flags on the command
line override it.

```bash
ishrink shrink --config configs/llama-3.2-1b.yaml --output llama-0.83
```

The iShrink thesis removed 13.75 to 17.04 % of the parameters of its models; the recipes for these, and most others,
remove about as much. Those for Gemma and Qwen remove rows of the vocabulary alone.

{markdown_table(("recipe", "model", "parameters", "after", "removed"), recipe_rows())}

Presets for any model, to be used with `--model`: {", ".join(f"`configs/{name}`" for name in presets)}.
"""


def command_line_page() -> str:
    """Return the flags of every verb, read from the parser."""
    parser = Parser(prog="ishrink", allow_abbrev=False)
    add_verbs(parser)
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    texts = {action.dest: action.help or "" for action in verbs._choices_actions}
    parts = [
        f"""# Command line

`ishrink` and `optimum-cli ishrink` are the same program. Flags are the options of
[`IShrinkConfig`](configuration.md) with dashes for underscores, and a few that only one verb needs. Without a flag,
the option's default applies. Exit status and output streams: [environment](environment.md).

{markdown_table(("verb", "what it does"), [(f"[`{name}`](#{name})", _cell(texts[name])) for name in verbs.choices])}
"""
    ]
    for name, verb in verbs.choices.items():
        example = "\n".join(line.strip() for line in (verb.epilog or "").removeprefix("example:").strip().splitlines())
        parts.append(f"## {name}\n\n{_sentence(texts[name])}\n\n```bash\n{example}\n```\n")
        for group in verb._action_groups:
            actions = [action for action in group._group_actions if action.dest != "help"]
            if not actions:
                continue
            rows = [(_flag(action), _cell((action.help or "").replace("%%", "%"))) for action in actions]
            title = {"options": "run", "positional arguments": "arguments"}.get(group.title or "", group.title)
            parts.append(f"**{_sentence(str(title)).rstrip('.')}**\n\n{markdown_table(('flag', 'meaning'), rows)}\n")
    return "\n".join(parts)


def _flag(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings) or str(action.metavar)
    values = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.metavar or action.dest.upper()
    takes_value = bool(action.option_strings) and action.nargs != 0
    return f"`{names}{f' {values}' if takes_value else ''}`"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _code(text: str) -> str:
    """Return text as code in a cell. A bar would end the cell, and not every renderer can escape one in code."""
    if "|" not in text:
        return f"`{text}`"
    escaped = re.sub(r"[&<>|*_`\[\]\\]", lambda found: f"&#{ord(found[0])};", text)
    return f"<code>{escaped}</code>"


def _cell(text: str) -> str:
    """Return text as one cell of a Markdown table, with brackets and stars outside code spans escaped."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([\[\]*<])", r"\\\1", part) for part in parts)


def criteria_page() -> str:
    """Return the criteria and losses that are registered, with formula, cost and source."""

    def table(registry: Any) -> str:
        found = [registry[name] for name in registry]
        rows = [(f"`{each.name}`", _code(each.formula), _cell(each.cost), _cell(each.reference)) for each in found]
        return markdown_table(("name", "score", "takes", "source"), rows)

    losses = [LOSSES[name] for name in LOSSES]
    loss_rows = [(f"`{each.name}`", _code(each.formula), each.reads, _cell(each.reference)) for each in losses]
    return f"""# Criteria and losses

## Criteria for units

For KV groups, query heads and neurons: `--importance NAME`. `ishrink plan --importance help` prints this list.

{table(UNIT_CRITERIA)}

## Criteria for experts

For the experts that `--num-experts` drops: `--expert-importance NAME`.

{table(EXPERT_CRITERIA)}

## Criteria for layers

`--layer-importance NAME`.

{table(LAYER_CRITERIA)}

## Recovery losses

`--recovery NAME`, or a weighted sum such as `kl+hidden:0.1`.

{markdown_table(("name", "per token", "reads", "source"), loss_rows)}

Each is one function in one file: [add a criterion](../how-to/add-a-criterion.md),
[add a loss](../how-to/add-a-loss.md).
"""


def python_api_page() -> str:
    """Return the public names, whose documentation mkdocstrings takes from the source.

    Raises:
        ValueError: A public name, or a public method of one, has no docstring.
    """
    undocumented = []
    for name in optimum_ishrink.__all__:
        kind = getattr(optimum_ishrink, name)
        # Not inspect.getdoc: it takes a base's docstring. A dataclass without one gets its signature.
        if not kind.__doc__ or kind.__doc__.startswith(f"{name}("):
            undocumented.append(name)
        if inspect.isclass(kind):
            undocumented += [
                f"{name}.{member}"
                for member, value in vars(kind).items()
                if not member.startswith("_")
                and (inspect.isroutine(value) or isinstance(value, (property, classmethod, staticmethod)))
                and not inspect.getdoc(getattr(kind, member))
            ]
    if undocumented:
        raise ValueError(f"public names without a docstring: {', '.join(undocumented)}")
    first = ["IShrinker", "ShrinkResult", "IShrinkConfig"]
    names = [*first, *(name for name in optimum_ishrink.__all__ if name not in first)]
    # `push_to_hub` and `chat` of both come from bases.
    inherit = "\n    options:\n      inherited_members: [push_to_hub, chat]"
    parts = "\n\n".join(f"::: optimum_ishrink.{name}{inherit if name in first[:2] else ''}" for name in names)
    return f"""# Python API

What `from optimum_ishrink import ...` gives. Importing the package imports no torch: these names are loaded when they
are first used. Short programs for each method: [API examples](api-examples.md).

{parts}
"""


PAGES = {
    "reference/configuration.md": runpy.run_path(str(DOCS / "configuration_page.py"))["configuration_page"],
    "reference/command-line.md": command_line_page,
    "reference/architectures.md": runpy.run_path(str(DOCS / "architectures_page.py"))["architectures_page"],
    "reference/recipes.md": recipes_page,
    "reference/criteria.md": criteria_page,
    "reference/python-api.md": python_api_page,
}


def generated() -> dict[Path, str]:
    """Return what every generated file should hold."""
    files = {DOCS / name: page().replace("\n", f"\n\n{GENERATED}\n", 1) for name, page in PAGES.items()}
    readme = ROOT / "README.md"
    files[readme] = fill_tables(readme.read_text(encoding="utf-8"))
    return files


def stale() -> list[str]:
    """Return the generated files that do not hold what the code says."""
    return [
        str(path.relative_to(ROOT))
        for path, text in generated().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


if __name__ == "__main__":
    for path in [ROOT / name for name in stale()]:
        path.write_text(generated()[path], encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
