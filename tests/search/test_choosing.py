from __future__ import annotations

import math

from optimum_ishrink.planning.limits import parse_limits
from optimum_ishrink.search.allocation import Budget, Candidate
from optimum_ishrink.search.choosing import binding_limits, next_candidate
from optimum_ishrink.search.recipe import Recipe

BASE = {"num_hidden_layers": 4, "intermediate_size": 128}


def candidate(divergence: float, **changes: int) -> Candidate:
    return Candidate(Recipe({**BASE, **changes}, {"a": "q4_0"}), divergence, {"bytes": 1.0})


def test_the_best_expected_one_comes_first_and_one_of_another_kind_second() -> None:
    narrow, narrower, shallow = (
        candidate(0.1, intermediate_size=96),
        candidate(0.11, intermediate_size=64),
        candidate(0.12, num_hidden_layers=3),
    )
    ranked = [narrow, narrower, shallow]
    assert next_candidate(ranked, {}, [], BASE, first=True) is narrow
    made = {narrow.recipe.key: 0.2}
    assert next_candidate(ranked, made, [narrow.recipe], BASE, first=False) is shallow
    far = candidate(0.5, num_hidden_layers=2)
    assert next_candidate([narrow, narrower, far], made, [narrow.recipe], BASE, first=False) is narrower


def test_it_ends_where_the_best_measured_one_is_expected_to_stay_the_best() -> None:
    narrow, shallow = candidate(0.1, intermediate_size=96), candidate(0.12, num_hidden_layers=3)
    tried = [narrow.recipe, candidate(1, num_hidden_layers=2).recipe]
    assert next_candidate([narrow, shallow], {narrow.recipe.key: 0.11}, tried, BASE, first=False) is None
    assert next_candidate([narrow, shallow], {narrow.recipe.key: 0.13}, tried, BASE, first=False) is shallow
    assert next_candidate([narrow], {narrow.recipe.key: 0.13}, tried, BASE, first=False) is None


def test_a_family_makes_nothing_twice_and_goes_on_after_what_cannot_be_made() -> None:
    narrow, shallow = candidate(0.1, intermediate_size=96), candidate(0.12, num_hidden_layers=3)
    assert next_candidate([narrow, shallow], {narrow.recipe.key: 0.11}, [], BASE, first=True) is None
    assert next_candidate([narrow, shallow], {narrow.recipe.key: math.inf}, [], BASE, first=True) is shallow


def test_limits_bind_where_figures_come_near() -> None:
    budget = Budget(parse_limits("bytes=100B,decode=+10%"), {"bytes": 200.0, "decode": 10.0})
    assert binding_limits(budget, {"bytes": 99.0, "decode": 20.0}) == ("bytes",)
    assert binding_limits(budget, {"bytes": 50.0, "decode": 11.1}) == ("decode",)
    assert budget.excess({"bytes": 150.0, "decode": 5.5})["decode"] == 1.0
