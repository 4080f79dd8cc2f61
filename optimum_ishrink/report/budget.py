"""The budget that a model was searched for: what it was, what bound, and the neighbours on the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .search import Answer, Figures, FoundModel, SearchRecord, types_by_kind, what_runs

THIS = "this model"


@dataclass(frozen=True)
class Neighbour:
    """A model that was measured in the same search.

    Args:
        name: What the search calls it; `THIS` for the reported one.
        figures: What is known best of it: its divergence, and its costs measured or else expected.
    """

    name: str
    figures: Figures


@dataclass(frozen=True)
class BudgetRecord:
    """What a model was searched for.

    Args:
        target: The budget, as the user wrote it.
        runtime: Name of the runtime that it was searched for.
        binding: The limits that the model comes within two percent of.
        types: Types of each kind of matrix in the runtime's file, as `types_by_kind` writes them; empty where a
            checkpoint runs, in its own dtype.
        texts: Names of the texts that it was chosen on.
        windows: Windows of these.
        length: Tokens in each.
        made: Models that were made and measured in the search, besides the unpruned one in a single type.
        rounding: How weights are rounded to these types; None where none are.
        models: The model, its neighbours on the front of bytes and divergence, and the best unpruned one in a single
            type that keeps the budget; the smallest first.
    """

    target: str
    runtime: str
    binding: tuple[str, ...]
    types: Mapping[str, str]
    texts: tuple[str, ...]
    windows: int
    length: int
    made: int
    rounding: str | None
    models: tuple[Neighbour, ...]


def budget_record(record: SearchRecord, answer: Answer) -> BudgetRecord:
    """Return what the best model for a budget was searched for.

    Args:
        record: The search.
        answer: Its answer to the budget, which has a model.
    """
    assert answer.best is not None
    best = record.model_named(answer.best)
    measured = [each for each in record.models if each.measured is not None]
    plain = record.best_plain(answer.target)
    shown = {each.name: each for each in (best, *neighbours(measured, best), *([] if plain is None else [plain]))}
    return BudgetRecord(
        target=answer.target,
        runtime=record.runtime,
        binding=answer.binding,
        types=types_by_kind(best.types) if what_runs(record.runtime) == "file" else {},
        texts=record.texts,
        windows=record.windows,
        length=record.length,
        made=sum(not each.is_plain for each in measured),
        rounding=record.rounding,
        models=tuple(
            Neighbour(THIS if each is best else each.name, replace(each.figures, costs=each.costs))
            for each in sorted(shown.values(), key=lambda each: each.costs["bytes"])
        ),
    )


def neighbours(models: Sequence[FoundModel], best: FoundModel) -> list[FoundModel]:
    """Return the next smaller and the next larger model on the front of bytes and divergence.

    Args:
        models: Models that were measured.
        best: The one whose neighbours are asked for; it need not lie on the front itself.
    """
    front: list[FoundModel] = []
    for model in sorted(models, key=lambda each: (each.costs["bytes"], each.figures.divergence)):
        if not front or model.figures.divergence < front[-1].figures.divergence:
            front.append(model)
    smaller = [each for each in front if each.costs["bytes"] < best.costs["bytes"]]
    larger = [each for each in front if each.costs["bytes"] > best.costs["bytes"]]
    return smaller[-1:] + larger[:1]
