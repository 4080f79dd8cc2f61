"""The record of a search: the budget, every model that was made, what was expected of it, and what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.json_codec import from_plain, rare_entry, to_plain
from ..core.json_files import read_json
from ..errors import SourceError

SEARCH_FILE = "search.json"
SCHEMA = 1


@dataclass(frozen=True)
class Figures:
    """What a recipe costs and loses, expected or measured.

    Args:
        divergence: KL divergence from the base over the text to choose on, nats for each of the base's tokens.
        stderr: Its standard error over windows, where it was measured.
        carried: The part of it at places that both models predict at, where it was measured.
        costs: Parameters, bytes of the file, tokens per second, seconds to the first token and bytes of memory, as
            far as they are known.
    """

    divergence: float
    stderr: float | None
    carried: float | None
    costs: Mapping[str, float]


_RUNS: Mapping[str, str] = {"torch": "checkpoint"}
"""What runs on each runtime; a file on the others."""


def what_runs(runtime: str) -> str:
    """Return what runs on a runtime, whose bytes count: a file, or a checkpoint.

    Args:
        runtime: Name of the runtime.
    """
    return _RUNS.get(runtime, "file")


def kind_of(name: str) -> str:
    """Return the kind of a matrix: its name in the file without its layer, such as `ffn_down` or `mlp.down_proj`.

    Args:
        name: Its name in the file.
    """
    parts = name.split(".")
    layer = next((place for place, part in enumerate(parts) if part.isdigit()), -1)
    return ".".join(part for part in parts[layer + 1 : -1] if not part.isdigit())


def types_by_kind(types: Mapping[str, str]) -> dict[str, str]:
    """Return the types of each kind of matrix, such as `q4_0` or `q4_0 (24), q5_0 (6)`.

    Args:
        types: Name of the type of each matrix, by its name in the file.
    """
    counts: dict[str, Counter[str]] = {}
    for name, each in types.items():
        counts.setdefault(kind_of(name), Counter())[each] += 1
    return {
        kind: next(iter(found))
        if len(found) == 1
        else ", ".join(f"{name} ({count})" for name, count in found.most_common())
        for kind, found in counts.items()
    }


PLAIN = "plain "
"""What the names of the base in a single type begin with."""


@dataclass(frozen=True)
class FoundModel:
    """A model of the search.

    Args:
        name: What tables and plots call it.
        shape: Its sizes by config key.
        types: Name of the type of each matrix, by its name in the file.
        expected: What was expected of it before it was made.
        measured: What was measured; None where it was not made.
        unpruned: Whether it is the base in some types.
        keeps: The budgets that it keeps, by their texts.
    """

    name: str
    shape: Mapping[str, int]
    types: Mapping[str, str]
    expected: Figures
    measured: Figures | None
    unpruned: bool
    keeps: tuple[str, ...] = ()

    @property
    def figures(self) -> Figures:
        """What is known best: measured, or else expected."""
        return self.measured or self.expected

    @property
    def costs(self) -> Mapping[str, float]:
        """What is known best of each cost: what was measured, or else expected."""
        return {**self.expected.costs, **self.figures.costs}

    @property
    def is_plain(self) -> bool:
        """Whether it is the base in one type, as `export --quantization` writes it."""
        return self.name.startswith(PLAIN)


@dataclass(frozen=True)
class Answer:
    """What was found for one budget.

    Args:
        target: The budget, as the user wrote it.
        best: Name of the best model that was made; None where nothing keeps the budget.
        binding: The limits that the best model comes within two percent of.
        file: The GGUF file in the output folder; None where there is none, or the checkpoint runs.
        folder: The checkpoint in the output folder; None where the model is the base's own.
        nearest: What comes nearest to a budget that nothing keeps, in words.
        part_of: The looser budget whose model this one is a part of: it retains nothing that the other has lost. None
            for the largest model of a family, and where budgets are no family.
    """

    target: str
    best: str | None
    binding: tuple[str, ...]
    file: str | None = None
    folder: str | None = None
    nearest: str | None = None
    part_of: str | None = rare_entry()


@dataclass(frozen=True)
class Level:
    """A shape in which one dimension changes, measured after repair and not quantised.

    Args:
        dimension: Config key of the dimension.
        size: Its size.
        divergence: Nats for each of the base's tokens.
        saves: What it saves of each cost in the first type, as a share; of tokens per second, what it gains.
    """

    dimension: str
    size: int
    divergence: float
    saves: Mapping[str, float]


@dataclass(frozen=True)
class SearchRecord:
    """A search.

    Args:
        model: Name of the base.
        base: Its sizes by config key.
        runtime: Name of the runtime.
        build: Its version; empty where no time was measured.
        threads: Threads that it used.
        prompt: Tokens of the timed prompt.
        context: Tokens that the KV cache has room for.
        texts: Names of the texts that were chosen on.
        windows: Windows of these.
        length: Tokens in each.
        quantizations: Types that matrices can have.
        reference: Figures of the unpruned model in the first type, which relative limits refer to.
        models: Every model that was made, and the unpruned ones.
        expected_front: Bytes and expected divergence of the best recipe at each size.
        unpruned_front: The same of the unpruned model with types of its own for each matrix.
        answers: What was found, for each budget.
        advice: What follows, in sentences.
        errors: Largest relative error of the cost model on files that it was not fitted to, by metric.
        levels: Shapes in which one dimension changes.
        rounding: How weights are rounded to their types; None where none are.
    """

    model: str
    base: Mapping[str, int]
    runtime: str
    build: str
    threads: int
    prompt: int
    context: int
    texts: tuple[str, ...]
    windows: int
    length: int
    quantizations: tuple[str, ...]
    reference: Mapping[str, float]
    models: tuple[FoundModel, ...]
    expected_front: tuple[tuple[float, float], ...]
    unpruned_front: tuple[tuple[float, float], ...]
    answers: tuple[Answer, ...]
    advice: tuple[str, ...] = ()
    errors: Mapping[str, float | None] = field(default_factory=dict)
    levels: tuple[Level, ...] = ()
    rounding: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {"schema": SCHEMA, **to_plain(self)}

    def model_named(self, name: str) -> FoundModel:
        """Return a model by its name.

        Args:
            name: The name.
        """
        return next(each for each in self.models if each.name == name)

    def best_plain(self, target: str) -> FoundModel | None:
        """Return the best unpruned model in a single type that keeps a budget; None if none does.

        Args:
            target: The budget's text.
        """
        kept = [each for each in self.models if each.is_plain and target in each.keeps]
        return min(kept, key=lambda each: each.figures.divergence, default=None)

    @classmethod
    def read(cls, folder: Path) -> SearchRecord:
        """Read the record of an output folder.

        Args:
            folder: The folder.

        Raises:
            SourceError: It has none, or the record is damaged or of another version.
        """
        data = read_json(folder / SEARCH_FILE)
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise SourceError(f"{folder / SEARCH_FILE} is of another version")
        return from_plain(cls, {key: value for key, value in data.items() if key != "schema"}, kind="search")
