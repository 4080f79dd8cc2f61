from __future__ import annotations

import pytest
import torch

from optimum_ishrink.analysis.zeroing import (
    KINDS,
    Removal,
    check_levels,
    choose_removal,
    kinds_of,
    removed_parameters,
    share_of,
)
from optimum_ishrink.architectures.description import GROUPS, LAYERS, NEURONS
from optimum_ishrink.errors import ShapeError
from tests.helpers.scored_models import bound_model, random_scores


def test_halves_are_rounded_up() -> None:
    assert [share_of(0.5, count) for count in (1, 2, 3, 5)] == [1, 1, 2, 3]
    assert [share_of(share, 30) for share in (0, 0.05, 0.25, 0.5)] == [0, 2, 8, 15]


def test_neurons_go_evenly_and_groups_by_their_share_of_their_layers_score() -> None:
    _, binding = bound_model("llama")
    scores = random_scores(binding)
    shares = scores[GROUPS] / scores[GROUPS].sum(dim=1, keepdim=True)
    scores[GROUPS] *= torch.tensor([1e-3, 1, 1e3, 0.1])[:, None]  # as in models whose stream grows
    removal = choose_removal(binding, scores, KINDS["mlp"], 0.25)
    assert [len(row) for row in removal.neurons] == [6] * 4
    for row, values in zip(removal.neurons, scores[NEURONS]):
        gone = torch.zeros(24, dtype=torch.bool)
        gone[list(row)] = True
        assert values[gone].max() < values[~gone].min()
    removal = choose_removal(binding, scores, KINDS["attention"], 0.5)
    assert sum(map(len, removal.groups)) == 8
    worst_kept = min(float(shares[i, j]) for i in range(4) for j in range(4) if j not in removal.groups[i])
    best_gone = max(float(shares[i, j]) for i in range(4) for j in removal.groups[i])
    assert best_gone < worst_kept
    assert removal.units == {GROUPS: 8}


def test_protected_layers_are_not_skipped_and_all_takes_the_rest_from_those_that_stay() -> None:
    _, binding = bound_model("llama")
    scores = random_scores(binding)
    scores[LAYERS] = torch.tensor([0.0, 0.2, 0.1, 0.3])
    assert choose_removal(binding, scores, KINDS["layers"], 0.5, (1, 0)).layers == (1, 2)
    removal = choose_removal(binding, scores, KINDS["all"], 0.5, (1, 0))
    assert removal.layers == (1, 2)
    assert [len(row) for row in removal.neurons] == [12, 0, 0, 12]
    assert removal.groups[1] == removal.groups[2] == ()
    assert removal.units == {LAYERS: 2, GROUPS: 4, NEURONS: 24}
    with pytest.raises(ShapeError, match="cannot remove 2 of 4 layers"):
        choose_removal(binding, scores, KINDS["layers"], 0.5, (3, 0))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "qwen2", "mixtral", "qwen2_moe", "phi3", "cohere"])
def test_the_parameters_are_those_that_a_cut_of_this_shape_would_take(model_type: str) -> None:
    _, binding = bound_model(model_type)
    scores, total = random_scores(binding), binding.num_parameters()
    none = choose_removal(binding, scores, KINDS["all"], 0.0)
    assert none.units == {}
    assert removed_parameters(binding, none) == 0
    mlp = choose_removal(binding, scores, KINDS["mlp"], 0.5)
    assert removed_parameters(binding, mlp) == total - binding.num_parameters({NEURONS: 12})
    even = Removal((), ((0, 3),) * 4, ((),) * 4)
    assert removed_parameters(binding, even) == total - binding.num_parameters({GROUPS: 2})
    deep = Removal((3,), ((),) * 4, ((),) * 4)
    assert removed_parameters(binding, deep) == total - binding.num_parameters({LAYERS: 3})
    # What is removed from layers one by one adds up.
    parts = [Removal((), tuple((0,) if i == layer else () for i in range(4)), ((),) * 4) for layer in range(4)]
    together = Removal((), ((0,),) * 4, ((),) * 4)
    assert sum(removed_parameters(binding, part) for part in parts) == removed_parameters(binding, together)


def test_all_takes_only_what_can_be_cut() -> None:
    assert kinds_of(bound_model("gpt2")[1])["all"] == (LAYERS, NEURONS)
    assert kinds_of(bound_model("gpt2")[1])["attention"] == (GROUPS,)
    assert kinds_of(bound_model("llama")[1]) == KINDS


def test_levels_that_would_skip_protected_layers() -> None:
    _, binding = bound_model("llama")
    check_levels(binding, (0, 0.25, 0.5), (1, 1))
    with pytest.raises(ShapeError, match=r"level of 50 would skip 2 of 4 .* 2 first and 1 last .* up to 37, or lower"):
        check_levels(binding, (0, 0.25, 0.5), (2, 1))
    check_levels(binding, (0.37,), (2, 1))
    with pytest.raises(ShapeError, match="up to 12"):
        check_levels(binding, (0.25,), (3, 3))
