from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge.gguf_quantizations import TENSOR_TYPES
from optimum_ishrink.planning.limits import parse_limits
from optimum_ishrink.planning.prices import CostModel
from optimum_ishrink.report.search import kind_of
from optimum_ishrink.search.allocation import Allocator, Budget, _lower_hull
from optimum_ishrink.search.damage import PRIORS, DamageModel, TypeDamage
from optimum_ishrink.search.recipe import Recipe
from optimum_ishrink.search.template import Template
from optimum_ishrink.search.turns import Workload
from tests.helpers.base_file import base_template
from tests.helpers.edge_models import save_edge

NAMES = ["q8_0", "q5_0", "q4_0"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    folder = tmp_path_factory.mktemp("base")
    return base_template(open_source(save_edge(folder / "model", num_hidden_layers=3)), folder / "base.gguf")


def damage(template: Template, blocks: tuple[float, ...] = (0.2, 0.2, 0.6)) -> DamageModel:
    kinds = list(dict.fromkeys(kind_of(tensor.name) for tensor in template.tensors if tensor.is_matrix))
    each = {kind: 0.01 * (number + 1) ** 2 for number, kind in enumerate(kinds)}
    errors = {kind: {"q4_0": 1.0, "q5_0": 0.25, "q8_0": 0.005} for kind in kinds}
    return DamageModel(template.binding.shape, dict(PRIORS), TypeDamage(each, blocks, errors))


def test_no_allocation_of_as_many_bytes_loses_less(template: Template) -> None:
    model = damage(template)
    found = Allocator(template, model, None, Workload(), NAMES).path(template.binding.shape)
    groups = list(found._groups)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in template.tensors}
    drawn = np.random.default_rng(0)
    best = [(found.candidate(count).figures["bytes"], float(found.divergences[count])) for count in range(len(found))]
    for _ in range(300):
        types = {name: str(drawn.choice(NAMES)) for group in groups for name in group}
        recipe = Recipe(template.binding.shape, types)
        nbytes = template.nbytes(recipe.shape, types)
        smaller = [value for size, value in best if size <= nbytes]
        # Between two points of the path another allocation can be better, by less than one step.
        steps = max(step.damage for step in found._steps)
        assert min(smaller, default=np.inf) <= model.of(recipe) + steps
    assert sizes


def test_candidates_bytes_are_those_of_their_files(template: Template) -> None:
    found = Allocator(template, damage(template), None, Workload(), NAMES).path(template.binding.shape)
    for count in (0, len(found) // 2, len(found) - 1):
        candidate = found.candidate(count)
        assert candidate.figures["bytes"] == template.nbytes(candidate.recipe.shape, candidate.recipe.types)
        assert candidate.divergence == pytest.approx(found._allocator.damage.of(candidate.recipe))
    assert (np.diff(found.figures["bytes"]) > 0).all() and (np.diff(found.divergences) < 0).all()


def test_the_best_keeps_every_limit_and_the_next_step_does_not(template: Template) -> None:
    costs = CostModel(
        {
            "decode": {"once": 1e-3, "layers": 1e-4, "attention": 1e-9, "q8_0": 3e-8, "q5_0": 2.5e-8, "q4_0": 2e-8},
            "ttft": {
                "once": 1e-3,
                "layers": 1e-5,
                "attention": 1e-11,
                "head": 1e-9,
                "q8_0": 1e-10,
                "q5_0": 2e-10,
                "q4_0": 1e-10,
            },
            "memory": {"once": 1e6, "kv": 1.0, "rows": 1.0, "q8_0": 1.1, "q5_0": 0.7, "q4_0": 0.6},
        },
        {},
    )
    allocator = Allocator(template, damage(template), costs, Workload(), NAMES)
    found = allocator.path(template.binding.shape)
    base = found.candidate(len(found) - 1).figures
    for text in ("bytes=-30%", "decode=+10%", "memory=-3%", "bytes=-10%,decode=+15%"):
        budget = Budget(parse_limits(text), base)
        best = found.best(budget)
        assert best is not None and budget.allows(best.figures), text
        count = next(n for n in range(len(found)) if found.candidate(n).recipe.types == best.recipe.types)
        assert count + 1 == len(found) or not budget.allows(found.candidate(count + 1).figures), text
        for metric in ("decode", "ttft", "memory"):
            assert found.figures[metric][count] == pytest.approx(best.figures[metric], rel=1e-6)
    assert found.best(Budget(parse_limits("bytes=1kB"), base)) is None


def test_fewer_layers_have_one_type_for_each_kind(template: Template) -> None:
    shape = {**template.binding.shape, "num_hidden_layers": 2}
    found = Allocator(template, damage(template), None, Workload(), NAMES).path(shape)
    for count in range(len(found)):
        types = found.candidate(count).recipe.types
        for kind in {kind_of(name) for name in types}:
            assert len({each for name, each in types.items() if kind_of(name) == kind}) == 1
    assert not [name for name in types if name.startswith("blk.2")]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=6))
def test_the_hull_is_convex_and_below_every_point(points: list[tuple[int, int]]) -> None:
    points = sorted(points)
    x, y = [float(a) for a, _ in points], [float(b) for _, b in points]
    hull = _lower_hull(x, y)
    slopes = [(y[b] - y[a]) / (x[b] - x[a]) for a, b in itertools.pairwise(hull)]
    assert all(slope < 0 for slope in slopes) and slopes == sorted(slopes)
    for a, b in points:
        below = np.interp(a, [x[i] for i in hull], [y[i] for i in hull])
        assert b >= below - 1e-9


def test_types_are_sorted_from_the_coarsest(tmp_path: Path, template: Template) -> None:
    allocator = Allocator(template, damage(template), None, Workload(), NAMES)
    bits = [TENSOR_TYPES[name].nbytes / TENSOR_TYPES[name].block for name in allocator.types]
    assert bits == sorted(bits)
