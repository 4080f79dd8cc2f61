"""The tables in README.md that come from descriptions and recipes: `make tables` writes them, tests check them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.architectures.spec import descriptions
from optimum_ishrink.configuration import IShrinkConfig, read_recipe
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.core.table import Row, markdown_table
from optimum_ishrink.planning.plan import resolve_shape
from optimum_ishrink.report.files import REPORT_FILE
from optimum_ishrink.report.report import Report
from optimum_ishrink.report.tables import REPORT_HEADER, report_rows

_DIMENSIONS = {
    "num_hidden_layers": "depth",
    "num_key_value_heads": "KV groups (cut or merged)",
    "num_attention_heads": "query heads in a group",
    "intermediate_size": "MLP or expert neurons",
}


def architecture_table() -> str:
    """Return the table of supported architectures, and the reasons for what cannot be."""
    rows, reasons = [], []
    for model_type, description in descriptions().items():
        cells = []
        for key in _DIMENSIONS:
            dimension = description.dimensions[key]
            reason = dimension.fixed or dimension.inexact
            if (
                key == "num_key_value_heads"
                and description.rules
                and not reason
                and "heads" in description.rules[0].require
            ):
                reason = f"`{description.rules[0].require}`"
                if description.class_change:
                    reason += f", or else as `{description.class_change.model_type}` with `--allow-class-change`"
            if reason and reason not in reasons:
                reasons.append(reason)
            mark = "no" if dimension.fixed else "inexact" if dimension.inexact else "yes"
            cells.append(f"{mark} [{reasons.index(reason) + 1}]" if reason else mark)
        rows.append((f"`{model_type}`", description.models, *cells))
    notes = "\n".join(f"[{number}] {reason}." for number, reason in enumerate(reasons, start=1))
    return (
        markdown_table(("architecture", "models", *_DIMENSIONS.values()), rows) + "\n\n" + notes.replace("\n", "  \n")
    )


def recipe_rows() -> list[Row]:
    """Return (recipe, model, parameters before, after, removed) of every recipe, planned without weights.

    `configs/dimensions.json` holds the config.json of every model that a recipe names. Recipes that name none are for
    any model, and not in the table.
    """
    folder = Path(__file__).parent.parent / "configs"
    dimensions: dict[str, Any] = json.loads((folder / "dimensions.json").read_text(encoding="utf-8"))
    rows = []
    for path in sorted(folder.glob("*.yaml")):
        model = read_recipe(path).get("model")
        if model is None:
            continue
        _, binding = bind_config(dimensions[model])
        before = binding.num_parameters()
        after = binding.num_parameters(resolve_shape(binding, IShrinkConfig.from_yaml(path).request))
        rows.append(
            (f"`configs/{path.name}`", model, f"{before:,}", f"{after:,}", f"{100 * (1 - after / before):.2f}%")
        )
    return rows


def recipe_table() -> str:
    """Return the table of recipes."""
    return markdown_table(("recipe", "model", "parameters", "after", "removed"), recipe_rows())


def measured_table() -> str:
    """Return what was measured of the committed demo model, from its report."""
    card = "model_cards/SmolLM2-135M-Instruct-15"
    report = Report.from_json(read_json(Path(__file__).parent.parent / card / REPORT_FILE))
    where = f"{report.environment['cores']} CPU cores in {report.environment['dtype']}"
    return (
        f"SmolLM2-135M-Instruct at -15 %, nothing trained afterwards, on {where}\n"
        f"(`make demo`; [its card]({card}/README.md), and\n"
        f"[that of the same recovered]({card}-recovered/README.md) on its own words):"
        f"\n\n{markdown_table(REPORT_HEADER, report_rows(report))}\n\n"
        "± is one standard error over n windows; brackets are the quartiles of n rounds in which both models took\n"
        "turns, token by token. The ratio is shrunk over base."
    )


TABLES = {"measured": measured_table, "architectures": architecture_table, "recipes": recipe_table}


def fill_tables(text: str) -> str:
    """Return a document with its generated tables renewed; each stands between `<!-- NAME -->` and `<!-- /NAME -->`.

    Args:
        text: The document, in Markdown.
    """
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if start in text:
            before, rest = text.split(start)
            text = f"{before}{start}\n{table()}\n\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(fill_tables(document.read_text(encoding="utf-8")), encoding="utf-8")
