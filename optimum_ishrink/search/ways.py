"""Ways to meet a budget, from a config alone: in a second, with what models of this size lost on average."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..architectures.binding import Binding
from ..architectures.description import LAYERS, ROWS
from ..edge.gguf_quantizations import GGUF_QUANTIZATIONS, PROGRAM_TYPES, bits
from ..errors import ShapeError
from ..planning.limits import BYTES, DECODE, MEMORY, TTFT, parse_limits
from ..planning.prices import CostModel
from ..planning.protection import default_protection
from ..planning.row_choices import RowChoices
from ..report.search import types_by_kind
from .allocation import Allocator, Budget, Candidate
from .damage import PRIORS, TYPE_PRIORS, DamageModel, TypeDamage
from .options import AdviceOptions
from .outline import outline, weights_in
from .recipe import QUERY_HEADS, Recipe, plain_types, priced_types, uniform_types
from .shapes import dimension_sizes, shapes

UNCERTAINTY = 2.5
"""Factor by which expected divergences are off, either way: models differ that much from one another."""

_ROW_MULTIPLE = 64
_TIED_TO_ENGLISH = (0.012, 49_152)
_LEAST_ROWS = 4_096
_REACH = 3.0
"""Shapes are left out that alone lose so many times what the best way loses."""


@dataclass(frozen=True)
class Way:
    """One way to meet a budget.

    Args:
        name: What is done.
        shape: The sizes that change, by config key.
        types: The types of each kind of matrix.
        divergence: Expected KL divergence from the base, nats per token.
        low: A lower bound of what to expect.
        high: An upper bound.
        figures: Parameters and bytes of the file, and figures relative to the unpruned model in the first type:
            memory, time to the first token and tokens per second.
        commands: What makes it.
    """

    name: str
    shape: Mapping[str, int]
    types: Mapping[str, str]
    divergence: float
    low: float
    high: float
    figures: Mapping[str, float]
    commands: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the way as a JSON object."""
        return asdict(self)


def expected_rows(total: int) -> RowChoices:
    """Return what a smaller vocabulary costs where no text was counted: as English text, by the rows that stay.

    Additional tokens fall with the power 1.5 of the rows, as those of SmolLM2 and Gemma 3 do
    (docs/experiments/vocabulary.md).

    Args:
        total: Rows of the model.
    """
    scale, at = _TIED_TO_ENGLISH

    def tokens(rows: int) -> float:
        return float(scale * (at / rows) ** 1.5)

    most = max(0, total - _LEAST_ROWS)
    return RowChoices(
        total=total,
        tokens=total,
        multiple=_ROW_MULTIPLE,
        extra_tokens=[tokens(total - gone) - tokens(total) for gone in range(most + 1)],
    )


def find_ways(binding: Binding, options: AdviceOptions, *, model: str, count: int = 6) -> list[Way]:
    """Return ways to meet a budget, the one with the least expected divergence first.

    Args:
        binding: The model.
        options: The budget, the types to choose from, and what times and memory are expected of.
        model: The model's name, for the commands.
        count: How many at most.

    Raises:
        ShapeError: Nothing meets it; the message says what comes nearest.
    """
    layout, types, target = outline(binding), options.types, options.budget
    workload = options.workload
    rows = None if binding.description.dimensions[ROWS].fixed else expected_rows(binding.shape[ROWS])
    allocator = Allocator(layout, expected_damage(binding, types, rows), expected_costs(types), workload, types)
    whole = Recipe(dict(binding.shape), uniform_types(layout, types[0], types))
    budget = Budget(parse_limits(target), allocator.figures(whole))
    protected = sum(default_protection(binding.shape[LAYERS]))
    sizes = {key: dimension_sizes(binding, key, rows=rows, protected=protected, types=types) for key in binding.shape}
    considered = [shape for shape in shapes(sizes, binding) if allocator.takes(shape)]
    found: dict[tuple[Any, ...], Candidate] = {}
    coarsest: Candidate | None = None
    least = math.inf
    for shape in sorted(considered, key=allocator.damage.of_shape):
        lost = allocator.damage.of_shape(shape)
        kind = tuple(sorted(key for key, size in shape.items() if size != binding.shape[key]))
        if lost > _REACH * least:
            break
        if kind in found and lost >= found[kind].divergence:
            continue
        path = allocator.path(shape)
        best = path.best(budget)
        if best is None:
            first = path.candidate(0)
            if coarsest is None or budget.worst(first.figures)[1] < budget.worst(coarsest.figures)[1]:
                coarsest = first
            continue
        least = min(least, best.divergence)
        if kind not in found or best.divergence < found[kind].divergence:
            found[kind] = best
    for name in types:  # one type for all matrices, which needs no search
        recipe = Recipe(whole.shape, plain_types(layout, name, types))
        figures = allocator.figures(recipe)
        if budget.allows(figures):
            found["type", name] = Candidate(recipe, allocator.damage.of(recipe), figures)
    if not found:
        assert coarsest is not None
        limit, excess = budget.worst(coarsest.figures)
        raise ShapeError(
            f"nothing that can be made keeps {target}: the nearest is {coarsest.recipe.describe(binding.shape)}, "
            f"which is beyond {limit.metric} by {excess:.0%}"
        )
    unique = {each.recipe.key: each for each in found.values()}
    ranked = sorted(unique.values(), key=lambda each: each.divergence)[:count]
    return [_way(each, binding, budget, model, target, types) for each in ranked]


def expected_damage(binding: Binding, types: Sequence[str], rows: RowChoices | None) -> DamageModel:
    """Return what recipes are expected to cost where nothing was measured.

    Args:
        binding: The model.
        types: Names of the types.
        rows: What a smaller vocabulary costs in tokens.
    """
    weights = weights_in(outline(binding))
    total = sum(weights.values())
    layers = binding.sizes["layers"]
    kinds = {kind: count / total for kind, count in weights.items()}
    errors = {kind: {name: TYPE_PRIORS.get(name, 0.0) for name in priced_types(types)} for kind in kinds}
    return DamageModel(
        base=binding.shape,
        curves=dict(PRIORS),
        types=TypeDamage(kinds, [1 / layers] * layers, errors),
        rows=rows,
        spread=math.log(UNCERTAINTY),
    )


def expected_costs(types: Sequence[str]) -> CostModel:
    """Return prices where nothing was measured: decoding reads bytes, reading a prompt multiplies weights.

    They are of no device; only ratios of what they give mean anything.

    Args:
        types: Names of the types.
    """
    nbytes = {name: bits(name) for name in (*priced_types(types), "bf16")}
    decode = {"once": 0.0, "layers": 0.0, "attention": 0.0, **{name: each / 1e10 for name, each in nbytes.items()}}
    prompt = {"once": 0.0, "layers": 0.0, "attention": 0.0, "head": 1e-10, **dict.fromkeys(nbytes, 1e-11)}
    memory = {"once": 3e7, "kv": 1.0, "rows": 0.0, **nbytes}
    return CostModel({DECODE: decode, TTFT: prompt, MEMORY: memory}, {})


def _way(candidate: Candidate, binding: Binding, budget: Budget, model: str, target: str, types: Sequence[str]) -> Way:
    recipe, base = candidate.recipe, binding.shape
    changed = {key: size for key, size in recipe.changes(base).items() if key != QUERY_HEADS}
    template = outline(binding)
    exported = [name for name in types if name in GGUF_QUANTIZATIONS and name not in PROGRAM_TYPES]
    plain = next((name for name in exported if dict(recipe.types) == plain_types(template, name)), None)
    relative = {name: candidate.figures[name] / budget.base[name] - 1 for name in (MEMORY, TTFT, DECODE)}
    return Way(
        name=recipe.describe(base),
        shape=changed,
        types=types_by_kind(recipe.types),
        divergence=candidate.divergence,
        low=candidate.divergence / UNCERTAINTY,
        high=candidate.divergence * UNCERTAINTY,
        figures={"params": candidate.figures["params"], BYTES: candidate.figures[BYTES], **relative},
        commands=_commands(changed, plain, model, target, types),
    )


def _commands(
    changed: Mapping[str, int], plain: str | None, model: str, target: str, types: Sequence[str]
) -> tuple[str, ...]:
    """Return the commands of a way: what `export` writes as it is needs no search."""
    folder = model.rstrip("/").split("/")[-1]
    if plain is None or changed:
        words = ["ishrink", "search", "--model", model, "--target", target, "--quantization", ",".join(types)]
        if changed:
            words += ["--prune", ",".join(changed)]
        return (shlex.join([*words, "--output", f"{folder}-small"]),)
    file = f"{folder}-{plain}.gguf"
    return (shlex.join(["ishrink", "export", "--model", model, "--quantization", plain, "--output", file]),)
