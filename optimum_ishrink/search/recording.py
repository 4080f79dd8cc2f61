"""What is written of a search: its record, the best models, and the page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..architectures.description import ROWS
from ..card.build import build_card
from ..core.json_files import write_json
from ..planning.limits import BYTES, DECODE, PARAMS, Limit
from ..planning.prices import CostModel
from ..report.budget import BudgetRecord, budget_record
from ..report.page.search_page import write_search_page
from ..report.run import Run
from ..report.search import PLAIN, SEARCH_FILE, Answer, Figures, FoundModel, Level, SearchRecord
from .allocation import Allocator, Budget
from .candidates import Candidates
from .choosing import best_made, binding_limits
from .cost_model import features
from .family import best_of_family
from .layout import Layout
from .making import Maker
from .recipe import QUERY_HEADS, Recipe, plain_types, uniform_types
from .text_divergence import Divergence
from .turns import Workload

PAGE = "index.html"


def limits_text(limits: Sequence[Limit]) -> str:
    """Return limits as the user wrote them.

    Args:
        limits: The limits.
    """
    return ",".join(limit.text for limit in limits)


def base_figures(
    layout: Layout, type_name: str, types: Sequence[str], costs: CostModel, workload: Workload
) -> dict[str, float]:
    """Return what the unpruned model in a type is expected to cost.

    Relative limits refer to this, and not to what was timed of this one file: what is expected of other files errs in
    the same direction, and one disturbed timing does not move the budget.

    Args:
        layout: The base's file.
        type_name: Name of the type.
        types: Names of the types to choose from, for matrices whose rows do not fit it.
        costs: The prices.
        workload: What is timed.
    """
    shape, chosen = layout.binding.shape, uniform_types(layout, type_name, types)
    expected = costs.predict(features(layout, shape, chosen, workload, layout.in_shape(shape)))
    return {
        PARAMS: float(layout.binding.num_parameters()),
        BYTES: float(layout.nbytes(shape, chosen)),
        **expected,
    }


def level_record(allocator: Allocator, maker: Maker, shape: Mapping[str, int], value: float) -> Level:
    """Return the record of a shape in which one dimension changes.

    Args:
        allocator: Says what it saves.
        maker: Says what its vocabulary takes.
        shape: The sizes by config key.
        value: Its divergence.
    """
    base, layout = allocator.damage.base, allocator.layout
    finest = allocator.types[-1]
    before, after = (Recipe(of, uniform_types(layout, finest, allocator.types, of)) for of in (base, shape))
    old = allocator.figures(before)
    new = allocator.figures(after, maker.tokenizer_bytes(layout, shape[ROWS]))
    saves = {name: new[name] / old[name] - 1 if name == DECODE else 1 - new[name] / old[name] for name in old}
    (changed,) = (key for key, size in shape.items() if size != base[key] and key != QUERY_HEADS)
    return Level(changed, shape[changed], value, saves)


def unpruned_models(allocator: Allocator, whole: Mapping[str, Divergence], types: Sequence[str]) -> list[FoundModel]:
    """Return the unpruned model in each type.

    Args:
        allocator: Says what is expected.
        whole: What was measured, by type; a type whose weights share no scales loses nothing.
        types: Names of the types.
    """
    base, found = dict(allocator.damage.base), []
    for name in types:
        recipe = Recipe(base, plain_types(allocator.layout, name, types))
        costs = allocator.figures(recipe)
        of = whole.get(name)
        known = {key: costs[key] for key in (PARAMS, BYTES)}
        measured = Figures(0.0, None, 0.0, known) if of is None else Figures(of.value, of.stderr, of.carried, known)
        found.append(
            FoundModel(
                name=f"{PLAIN}{name}, unpruned",
                shape=base,
                types=recipe.types,
                expected=Figures(measured.divergence, None, None, costs),  # not expected: it is measured first
                measured=measured,
                unpruned=True,
            )
        )
    return found


def settled(
    budgets: Mapping[str, Budget],
    models: Sequence[FoundModel],
    nearest: Mapping[str, str],
    family: Sequence[str] | None,
    candidates: Candidates,
) -> tuple[Answer, ...]:
    """Return the answers to all budgets, in their order.

    Args:
        budgets: The budgets by their texts.
        models: All models, measured.
        nearest: What comes nearest, for budgets that nothing keeps.
        family: Texts of the budgets from the loosest to the tightest, where each model is to be a part of the last;
            None where each budget has the best model for itself.
        candidates: Says what the models retain.
    """
    if family is None:
        best = {target: best_made(models, target) for target in budgets}
    else:
        best = best_of_family(models, family, candidates.plan)
    answers = {}
    last = None
    for target in family or budgets:
        model = best[target]
        if model is None:
            answers[target] = Answer(target, None, (), nearest=nearest.get(target))
            continue
        limits = binding_limits(budgets[target], model.costs)
        answers[target] = Answer(target, model.name, limits, part_of=last)
        last = None if family is None else target
    return tuple(answers[target] for target in budgets)


def write_search(record: SearchRecord, candidates: Candidates, folder: Path) -> SearchRecord:
    """Write the best models, the record and the page.

    Args:
        record: The record.
        candidates: The models that were made.
        folder: An existing, empty folder.

    Returns:
        The record with the places of what was written.
    """
    answers = []
    for number, answer in enumerate(record.answers, start=1):
        if answer.best is None:
            answers.append(answer)
            continue
        model = record.model_named(answer.best)
        recipe = candidates.recipe(model)
        place = folder if len(record.answers) == 1 else folder / str(number)
        place.mkdir(exist_ok=True)
        file = candidates.write(recipe, place)
        checkpoint = None
        if recipe.changes(record.base):
            checkpoint = place / "model"
            shutil.copytree(candidates.checkpoint(recipe).folder, checkpoint)
            _report_budget(checkpoint, budget_record(record, answer))
            build_card(checkpoint)
        answers.append(
            replace(
                answer,
                file=_within(folder, file),
                folder=_within(folder, checkpoint),
            )
        )
    record = replace(record, answers=tuple(answers))
    write_json(folder / SEARCH_FILE, record.to_json())
    write_search_page(record, folder / PAGE)
    return record


def _within(folder: Path, path: Path | None) -> str | None:
    return None if path is None else path.relative_to(folder).as_posix()


def _report_budget(folder: Path, budget: BudgetRecord) -> None:
    run = Run.read(folder)
    replace(run, report=replace(run.report, budget=budget)).write(folder)
