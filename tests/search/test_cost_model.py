from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.planning.prices import Probe, fit, non_negative_least_squares
from optimum_ishrink.search.cost_model import features
from optimum_ishrink.search.template import Template
from optimum_ishrink.search.turns import Workload


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(0.1, 10), min_size=n, max_size=n),
            st.lists(st.lists(st.floats(0.1, 10), min_size=n, max_size=n), min_size=n + 3, max_size=n + 3),
        )
    )
)
def test_least_squares_are_no_worse_than_the_truth(case: tuple[list[float], list[list[float]]]) -> None:
    prices, rows = np.array(case[0]), np.array(case[1])
    values = rows @ prices
    found = non_negative_least_squares(rows, values)
    assert (found >= 0).all()
    assert ((rows @ found - values) ** 2).sum() <= 1e-3 * (values**2).sum()


def test_negative_prices_are_zero() -> None:
    table = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert non_negative_least_squares(table, np.array([1.0, -1.0, 0.0]))[1] == 0


def probe(weights: float, layers: float, *, fitted: bool = True) -> Probe:
    """A made-up device: a token costs 2 ms, 0.1 ms a layer and 10 ns a weight; a prompt 5 ms and 20 ns a weight."""
    features = {
        "decode": {"once": 1.0, "layers": layers, "q8_0": weights},
        "ttft": {"once": 1.0, "q8_0": weights},
        "memory": {"once": 1.0, "q8_0": weights},
    }
    figures = {
        "decode": 1 / (2e-3 + 1e-4 * layers + 1e-8 * weights),
        "ttft": 5e-3 + 2e-8 * weights,
        "memory": 3e7 + 1.0625 * weights,
    }
    return Probe("p", features, figures, fitted)


def test_prices_are_found_and_held_out_probes_say_how_far_they_are_off() -> None:
    probes = [probe(w * 1e6, layers) for w in (50, 100, 200) for layers in (10, 20, 30)]
    model = fit([*probes, probe(140e6, 13, fitted=False)])
    wanted = probe(77e6, 25)
    found = model.predict(wanted.features)
    for metric, value in wanted.figures.items():
        assert found[metric] == pytest.approx(value, rel=0.01)
        error = model.errors[metric]
        assert error is not None and error < 0.01


def test_attention_goes_with_layers_heads_and_tokens(base_file: Template) -> None:
    base, workload = base_file.binding.shape, Workload(prompt=8, new_tokens=4, context=64)
    heads, head_dim = base["num_attention_heads"], base_file.binding.sizes["head_dim"]
    for changes in ({}, {"num_hidden_layers": 2}, {"num_key_value_heads": 1, "num_attention_heads": heads // 2}):
        shape = {**base, **changes}
        found = features(base_file, shape, {}, workload, base_file.in_shape(shape))
        width = shape["num_hidden_layers"] * shape["num_attention_heads"] * head_dim
        assert found["decode"]["attention"] == width * 10
        assert found["ttft"]["attention"] == width * 64


def test_what_the_system_does_not_report_is_not_predicted() -> None:
    probes = [
        Probe("p", each.features, {k: v for k, v in each.figures.items() if k != "memory"})
        for each in (probe(1e8, 10), probe(2e8, 20), probe(1e8, 30))
    ]
    found = fit(probes)
    assert "memory" not in found.prices
    assert "memory" not in found.predict(probes[0].features)
