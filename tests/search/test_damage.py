from __future__ import annotations

import pytest

from optimum_ishrink.planning.row_choices import RowChoices
from optimum_ishrink.search.damage import PRIORS, Curve, DamageModel, TypeDamage, fit_curve, shape_key
from optimum_ishrink.search.recipe import Recipe

BASE = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}
TYPES = TypeDamage(
    {"token_embd": 0.1, "ffn_up": 0.2},
    [0.1, 0.2, 0.3, 0.4],
    {k: {"q4_0": 1.0, "q8_0": 0.01} for k in ("token_embd", "ffn_up")},
)


def model(**changes: object) -> DamageModel:
    return DamageModel(**{"base": BASE, "curves": dict(PRIORS), "types": TYPES, **changes})  # type: ignore[arg-type]


def types(name: str, layers: int = 4) -> dict[str, str]:
    return {"token_embd.weight": name, **{f"blk.{i}.ffn_up.weight": name for i in range(layers)}}


def test_a_curve_goes_through_what_was_measured() -> None:
    curve = fit_curve([(0.1, 0.05), (0.2, 0.16)], Curve(1, 1))
    assert curve.at(0.1) == pytest.approx(0.05, rel=0.05)
    assert curve.at(0.2) == pytest.approx(0.16, rel=0.05)
    one = fit_curve([(0.1, 0.2)], Curve(1, 0))
    assert one == Curve(pytest.approx(2), 0)
    assert fit_curve([], Curve(3, 4)) == Curve(3, 4)


def test_the_base_in_its_own_bits_loses_nothing() -> None:
    assert model().of(Recipe(BASE, {})) == 0


def test_damages_of_matrices_add_up() -> None:
    damage = model()
    assert damage.of(Recipe(BASE, types("q4_0"))) == pytest.approx(0.3)
    assert damage.of(Recipe(BASE, {"blk.3.ffn_up.weight": "q4_0"})) == pytest.approx(0.08)
    fewer = {**BASE, "num_hidden_layers": 2}
    expected = damage.of_shape(fewer) + 0.1 + 0.2 / 2
    assert damage.of(Recipe(fewer, types("q4_0", 2))) == pytest.approx(expected)


def test_rows_cost_what_their_tokens_cost() -> None:
    rows = RowChoices(total=100, tokens=100, multiple=10, extra_tokens=[i / 1000 for i in range(60)])
    damage = model(rows=rows)
    assert damage.share("vocab_size", 80) == pytest.approx(0.02)
    assert damage.of_shape({**BASE, "vocab_size": 80}) == pytest.approx(PRIORS["vocab_size"].at(0.02))


def test_what_was_measured_of_a_shape_is_taken() -> None:
    narrow = {**BASE, "intermediate_size": 96}
    assert model(known={shape_key(narrow): 0.5}).of_shape(narrow) == 0.5


def test_corrections_go_half_of_the_way_after_one_recipe() -> None:
    damage = model()
    recipe = Recipe(BASE, types("q4_0"))
    once = damage.corrected([(recipe, 1.2)])
    assert once.of(recipe) == pytest.approx(0.6)
    often = damage.corrected([(recipe, 1.2)] * 20)
    assert often.of(recipe) == pytest.approx(1.2, rel=0.1)
    assert often.spread < once.spread < 0.75
    assert damage.corrected([]) is damage
