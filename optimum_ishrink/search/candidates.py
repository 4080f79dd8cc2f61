"""The models that a search really makes: their checkpoints and files, and what is measured of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..architectures.description import ROWS
from ..checkpoint.source import Source
from ..core.progress import note
from ..errors import ShapeError
from ..planning.limits import BYTES, DECODE, PARAMS, TTFT
from ..planning.nesting import is_nested
from ..report.plan import Plan
from ..report.search import Figures, FoundModel
from .allocation import Budget, Candidate
from .choosing import Choices, next_candidate
from .damage import shape_key
from .measured_damage import Measuring
from .options import SearchOptions
from .recipe import Recipe, uniform_types
from .runtime import Runtime


class Candidates:
    """The models that are made in one search.

    Args:
        measuring: What their measurements share.
        runtime: The base on the runtime.
        options: How many are made, and how they are timed.
        deadline: When no further one is made, by the monotonic clock; None for no limit.
    """

    def __init__(
        self,
        measuring: Measuring,
        runtime: Runtime,
        options: SearchOptions,
        deadline: float | None,
    ) -> None:
        self._measuring = measuring
        self._runtime = runtime
        self._options = options
        self._deadline = deadline
        self.made: dict[str, FoundModel] = {}
        """The models that were made, by their recipes' keys."""
        self._recipes: dict[str, Recipe] = {}
        self._refused: dict[str, float] = {}

    @property
    def _source(self) -> Source:
        return self._measuring.maker.session.source

    def answer(self, budget: Budget, choices: Choices, larger: Recipe | None = None) -> bool:
        """Make the best expected recipes of a budget until the best one that was measured should stay the best.

        Args:
            budget: The budget.
            choices: All recipes; what is expected of them is corrected by what is measured.
            larger: The recipe of the larger model that they are to be parts of; None for the base.

        Returns:
            Whether anything keeps the budget.
        """
        plain = choices.allocator.damage
        tried: list[tuple[Recipe, float]] = []
        for number in range(self._options.candidates):
            ranked = self._ranked(budget, choices, larger)
            if not ranked:
                return False
            measured = {key: model.figures.divergence for key, model in self.made.items()} | self._refused
            chosen = next_candidate(ranked, measured, [recipe for recipe, _ in tried], plain.base, first=number == 0)
            if chosen is None:
                break
            if self._deadline is not None and self.made and time.monotonic() > self._deadline:
                note("the time is up: the best model that was measured is taken")
                break
            try:
                model, shape_value = self._make(chosen)
            except ShapeError as error:
                note(f"{chosen.recipe.describe(plain.base)} cannot be made: {error}")
                self._refused[chosen.recipe.key] = math.inf
                continue
            self.made[chosen.recipe.key] = model
            self._recipes[model.name] = chosen.recipe
            tried.append((chosen.recipe, model.figures.divergence))
            if shape_value is not None:
                plain = replace(plain, known={**plain.known, shape_key(chosen.recipe.shape): shape_value})
            choices.expect(plain.corrected(tried))
        choices.expect(plain)
        return True

    def _ranked(self, budget: Budget, choices: Choices, larger: Recipe | None) -> list[Candidate]:
        """Return the best recipes of a budget as parts of a larger one, the least expected divergence first."""
        ranked, maker = choices.best(budget, larger), self._measuring.maker
        if larger is None or maker.plan(larger.shape, larger.within) is None:
            return ranked
        name = maker.name(larger.shape, larger.within)
        found = []
        for each in ranked:
            itself = each.recipe.shape == larger.shape  # the same sizes within a model are that model
            found.append(replace(each, recipe=replace(each.recipe, within=larger.within if itself else name)))
        return found

    def recipe(self, model: FoundModel) -> Recipe:
        """Return the recipe of a model.

        Args:
            model: A model that was made, or the base in some types.
        """
        return self._recipes.get(model.name) or Recipe(model.shape, model.types, nearest=True)

    def plan(self, model: FoundModel) -> Plan | None:
        """Return what a model retains; None for the base.

        Args:
            model: A model that was made, or the base in some types.
        """
        recipe = self.recipe(model)
        return self._measuring.maker.plan(recipe.shape, recipe.within)

    def _name(self, recipe: Recipe) -> str:
        """Return what tables call a recipe: no two of them the same."""
        name = recipe.describe(self._source.binding.shape)
        alike = sum(each == name or each.startswith(f"{name} (") for each in self._recipes)
        return f"{name} ({alike + 1})" if alike else name

    def _make(self, candidate: Candidate) -> tuple[FoundModel, float | None]:
        """Make a candidate and measure it; return it, and the divergence of its shape, not quantised."""
        measuring, recipe, base = self._measuring, candidate.recipe, self._source.binding.shape
        changed = recipe.changes(base)
        note(f"making {recipe.describe(base)}, expected at {candidate.divergence:.3f} nats/token")
        made = measuring.maker.make(recipe.shape, recipe.within)
        of_shape = measuring.of_shape(recipe.shape, recipe.within) if changed else None
        if of_shape is None or recipe.is_quantized:
            found = measuring.divergence(f"recipe {recipe.key}", made, recipe.types)
        else:
            found = of_shape  # nothing is lost by its types
        note(f"measured {found.value:.3f} nats/token")
        nbytes = self._runtime.nbytes(self.file(recipe))
        costs = {PARAMS: float(made.source.binding.num_parameters()), BYTES: float(nbytes)}
        model_made = FoundModel(
            name=self._name(recipe),
            shape=dict(recipe.shape),
            types=dict(recipe.types),
            expected=Figures(candidate.divergence, None, None, candidate.figures),
            measured=Figures(found.value, found.stderr, found.carried, costs),
            unpruned=not changed,
        )
        return model_made, None if of_shape is None else of_shape.value

    def best(self, unpruned: Sequence[FoundModel], budget: Budget, larger: Recipe | None) -> Recipe | None:
        """Return the recipe of the best model so far that keeps a budget and is a part of a larger one.

        Args:
            unpruned: The base in each type.
            budget: The budget. Times are those that were expected.
            larger: The recipe of the larger model; None for the base.

        Returns:
            The recipe; the larger one where no model that was made keeps the budget.
        """
        enclosing = None if larger is None else self._measuring.maker.plan(larger.shape, larger.within)
        found = [
            each
            for each in (*unpruned, *self.made.values())
            if budget.allows(each.costs) and is_nested(enclosing, self.plan(each))
        ]
        best = min(found, key=lambda each: each.figures.divergence, default=None)
        return larger if best is None else self.recipe(best)

    def checkpoint(self, recipe: Recipe) -> Source:
        """Return the checkpoint of a recipe's shape.

        Args:
            recipe: The recipe.
        """
        return self._measuring.maker.make(recipe.shape, recipe.within).source

    def file(self, recipe: Recipe) -> Path:
        """Return what runs of a recipe, written where it is not there yet.

        Args:
            recipe: The recipe.
        """
        measuring = self._measuring
        made = measuring.maker.make(recipe.shape, recipe.within)
        return self._runtime.make(recipe, made, None if recipe.nearest else measuring.rounding)

    def write(self, recipe: Recipe, folder: Path) -> Path | None:
        """Write what runs of a recipe into the output, once it is verified.

        Args:
            recipe: The recipe.
            folder: An existing folder.

        Returns:
            Where it lies; None where that is the checkpoint alone.

        Raises:
            VerificationError: It is not what was made.
        """
        file = self.file(recipe)
        self._runtime.verify(file, self._measuring.maker.make(recipe.shape, recipe.within))
        return self._runtime.deliver(file, folder)

    def timed(
        self, models: Sequence[FoundModel], budgets: Mapping[str, Budget], base: Mapping[str, float]
    ) -> list[FoundModel]:
        """Return models with their measured times, and the budgets that they keep.

        A machine is not as fast at the end of a search as when the probes were timed. So the unpruned model in the
        first type is timed in the same rounds, and times are stated as they would be at the pace of the probes.

        Args:
            models: The models; where no other device's profile is used, all are timed in turn.
            budgets: The budgets by their texts.
            base: The figures of the unpruned model in the first type, as the prices give them.
        """
        measured: dict[str, dict[str, float]] = {}
        if self._options.profile is None:
            runtime = self._runtime
            every = uniform_types(runtime.layout, runtime.types[0], runtime.types)
            whole = Recipe(dict(self._source.binding.shape), every, nearest=True)
            recipes = [whole, *map(self.recipe, models)]
            files = {recipe.key: self.file(recipe) for recipe in recipes}
            vocabulary = min(model.shape[ROWS] for model in models)
            measured = self._measuring.store.measured(
                "times " + " ".join(sorted(files)),
                lambda: runtime.time(files, vocabulary=vocabulary)[0],
            )
            now = measured[whole.key]
            pace = {name: base[name] / now[name] for name in (DECODE, TTFT)}
            measured = {
                key: {name: value * pace.get(name, 1.0) for name, value in of.items()} for key, of in measured.items()
            }
        found = []
        for model in models:
            if model.measured is not None:
                times = measured.get(self.recipe(model).key, {})
                model = replace(model, measured=replace(model.measured, costs={**model.measured.costs, **times}))
            keeps = tuple(target for target, budget in budgets.items() if budget.allows(model.costs))
            found.append(replace(model, keeps=keeps))
        return found
