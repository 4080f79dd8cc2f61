"""The tables of `rivals.py`: all rows, and a short one with each method's best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimum_ishrink.core.table import Row, markdown_table

Record = Mapping[str, Any]

TITLES = {
    "plain": "unpruned",
    "optipfair": "optipfair",
    "torch-pruning": "Torch-Pruning",
    "thesis": "the iShrink thesis",
    "ishrink": "`ishrink shrink`",
    "search": "`ishrink search`",
}
"""What tables call the methods, in this order."""

TEXTS = {
    "wikitext2.test.txt": "WikiText-2",
    "commonsense_qa.validation.jsonl": "CommonsenseQA",
    "Python reference topics": "Python topics",
}
"""What tables call the texts."""

OTHERS = ("optipfair", "torch-pruning", "thesis")


def mean_change(row: Record) -> float:
    """Return by how much a model needs more bits per byte than its base, as a share, the mean over texts.

    Args:
        row: A measured row.
    """
    before, after = row["base"]["bits_per_byte"], row["figures"]["bits_per_byte"]
    return float(sum(after[name][0] / before[name][0] - 1 for name in before)) / len(before)


def mean_of(figures: Mapping[str, Sequence[float]]) -> float:
    """Return the mean of a figure over texts or tasks.

    Args:
        figures: Value, standard error and n by text.
    """
    return sum(each[0] for each in figures.values()) / len(figures)


def spread_of(figures: Mapping[str, Sequence[float]]) -> float:
    """Return the standard error of `mean_of`; the texts are independent.

    Args:
        figures: Value, standard error and n by text.
    """
    return float(sum((each[1] or 0.0) ** 2 for each in figures.values()) ** 0.5) / len(figures)


class Results:
    """The rows of one model.

    Args:
        rows: All rows of an output.
        model: The model.
    """

    def __init__(self, rows: Sequence[Record], model: str) -> None:
        mine = [row for row in rows if row["model"] == model]
        quality = [row for row in mine if row["kind"] == "quality"]
        self.failed = [row for row in quality if "error" in row]
        self.rows = [row for row in quality if "error" not in row]
        self.tasks: dict[str, dict[str, tuple[float, float, int]]] = {}
        for row in mine:
            if row["kind"] == "task":
                self.tasks.setdefault(row["name"], {})[row["task"]] = (row["value"], row["stderr"], row["n"])
        timed = [row for row in mine if row["kind"] == "times"]
        self.timed = timed[-1] if timed else None

    @property
    def targets(self) -> list[str]:
        """The budgets, in the order of the output."""
        return list(dict.fromkeys(row["target"] for row in (*self.rows, *self.failed) if row["target"]))

    def of(self, target: str, *methods: str) -> list[Record]:
        """Return the rows of a budget, by method and type.

        Args:
            target: The budget; empty for the unpruned model.
            *methods: Only these.
        """
        found = [row for row in self.rows if row["target"] == target and (not methods or row["method"] in methods)]
        return sorted(found, key=lambda row: (list(TITLES).index(row["method"]), -row["bytes"]))

    def decode(self, row: Record) -> float | None:
        """Return a model's speed in tokens of the base per second; None where it was not timed.

        A smaller vocabulary takes more tokens for a text, so its own count of tokens would flatter it.

        Args:
            row: The model.
        """
        if self.timed is None or row["name"] not in self.timed["figures"]:
            return None
        own, base = (row[of].get("tokens_per_byte") for of in ("figures", "base"))
        share = mean_of(base) / mean_of(own) if own and base else 1.0
        return float(self.timed["figures"][row["name"]]["decode"]) * share


def best(rows: Sequence[Record]) -> Record | None:
    """Return the row with the fewest bits per byte; None where there are none.

    Args:
        rows: The rows.
    """
    return min(rows, key=mean_change, default=None)


def markdown(rows: Sequence[Record]) -> str:
    """Return all that was measured: for each model and budget a table of texts, and one of tasks and speed.

    The best figure of a column is bold where several models share a budget.

    Args:
        rows: The rows of an output.
    """
    parts = []
    for model in dict.fromkeys(row["model"] for row in rows):
        results = Results(rows, model)
        for target in ("", *results.targets):
            found = results.of(target)
            if found:
                parts += [f"### {model}, {target or 'unpruned'}", _texts(found), _tasks(results, found)]
        if results.failed:
            parts.append("\n".join(f"- {row['name']}: {row['error']}" for row in results.failed))
    return "\n\n".join(part for part in parts if part)


def _texts(rows: Sequence[Record]) -> str:
    names = list(rows[0]["figures"]["bits_per_byte"])
    titles = [TEXTS.get(name, name) for name in names]
    header = ("method", "type", "removed", "file, MB", *(f"bits per byte, {title}" for title in titles), "mean")
    header += (*(f"KL, {title}" for title in titles), "mean")
    body = []
    for row in rows:
        bits, kl = row["figures"]["bits_per_byte"], row["figures"]["kl_divergence"]
        cells = [f"{bits[name][0]:.3f} ± {bits[name][1]:.3f}" for name in names] + [f"{mean_change(row):+.1%}"]
        cells += [f"{kl[name][0]:.3f} ± {kl[name][1]:.3f}" for name in names]
        body.append([*_model(row), *cells, f"{mean_of(kl):.3f}"])
    if rows[0]["target"]:
        for column in range(4, len(header)):
            _embolden(body, column, smallest=True)
    return markdown_table(header, [tuple(cells) for cells in body])


def _model(row: Record) -> list[str]:
    removed = 1 - row["params"] / row["unpruned"]
    return [TITLES[row["method"]], row["quantization"], f"{removed:.1%}", f"{row['bytes'] / 1e6:.2f}"]


def _tasks(results: Results, rows: Sequence[Record]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in results.tasks.get(row["name"], {})))
    speeds = [results.decode(row) for row in rows]
    if not names and not any(speeds):
        return ""
    counts = {name: found[name][2] for found in results.tasks.values() for name in found}
    header = ("method", "type", "what is left", *(f"{name}, n = {counts[name]}" for name in names))
    header += (*(("mean",) if names else ()), "decode, the base's tokens/s")
    body = []
    for row, speed in zip(rows, speeds, strict=True):
        found = results.tasks.get(row["name"], {})
        cells = [f"{found[name][0]:.3f} ± {found[name][1]:.3f}" if name in found else "" for name in names]
        if names:
            cells.append(f"{mean_of(found):.3f} ± {spread_of(found):.3f}" if len(found) == len(names) else "")
        cells.append("" if speed is None else f"{speed:.1f}")
        body.append([TITLES[row["method"]], row["quantization"], _shape(row), *cells])
    if rows[0]["target"]:
        for column in range(3, len(header)):
            _embolden(body, column, smallest=False)
    return markdown_table(header, [tuple(cells) for cells in body])


def _shape(row: Record) -> str:
    shape = row["shape"]
    words = {"vocab_size": "rows", "num_hidden_layers": "layers", "intermediate_size": "neurons"}
    return ", ".join(f"{shape[key]:,} {word}" for key, word in words.items())


def _embolden(body: Sequence[list[str]], column: int, *, smallest: bool) -> None:
    values = [float(cells[column].split(" ")[0].rstrip("%")) for cells in body if cells[column]]
    if len(values) < 2:
        return
    wanted = min(values) if smallest else max(values)
    for cells in body:
        if cells[column] and float(cells[column].split(" ")[0].rstrip("%")) == wanted:
            cells[column] = f"**{cells[column]}**"


def short(rows: Sequence[Record]) -> str:
    """Return one row for each model and budget: bits per byte more than the base's, and the KL divergence.

    The others have two files at equal bytes; the better one on these very texts counts.

    Args:
        rows: The rows of an output.
    """
    header = ("model, budget", *(TITLES[name] for name in OTHERS), "ishrink")
    body: list[Row] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        results = Results(rows, model)
        for target in results.targets:
            own = results.of(target, "search") or results.of(target, "ishrink")
            found = [best(results.of(target, name)) for name in OTHERS] + [best(own)]
            failed = {row["method"] for row in results.failed if row["target"] == target}
            winner = best([row for row in found if row is not None])
            cells = [
                ("cannot" if name in failed else "not measured") if row is None else _short(row, bold=row is winner)
                for name, row in zip((*OTHERS, "search"), found, strict=True)
            ]
            body.append((f"{model}, {target}", *cells))
    return markdown_table(header, body)


def _short(row: Record, *, bold: bool) -> str:
    text = f"{mean_change(row):+.1%}, {mean_of(row['figures']['kl_divergence']):.2f} nats"
    return f"**{text}**" if bold else text
