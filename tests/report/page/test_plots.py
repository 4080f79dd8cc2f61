"""Plots of several output folders: which are Pareto-optimal, and how they are drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.errors import RequestError
from optimum_ishrink.report.measurement import Measurement
from optimum_ishrink.report.page.overview import build_overview, lower_is_better
from optimum_ishrink.report.page.pareto import pareto_optimal, plots
from optimum_ishrink.report.page.svg import HEIGHT, WIDTH, draw, ticks
from tests.helpers.named_reports import kl, output, text


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_pareto_optimal_points_are_those_that_no_other_beats(points: list[tuple[int, int]]) -> None:
    best = pareto_optimal(points)
    front = {point for point, optimal in zip(points, best) if optimal}
    assert len(best) == len(points) and bool(front) == bool(points)
    for point, optimal in zip(points, best):
        weakly = [each for each in front if each[0] <= point[0] and each[1] <= point[1]]
        assert weakly, "every point is matched or beaten by one of the front"
        assert optimal == (weakly == [point])


def test_plots_mark_pareto_optimal_models() -> None:
    measured = [
        output("good", 800, kl(0.1), timed=(10, 13)),
        output("worse", 900, kl(0.2), timed=(20, 24)),
        output("tiny", 500, kl(0.9)),
        output("alone", 400, kl(0.5, length=99), timed=(10, 50)),
        output("no base", 300, (), base=None),
    ]
    size, decode = plots(build_overview(measured))
    assert {point.label: point.optimal for point in size.points} == {
        "org/base": True,
        "good": True,
        "worse": False,
        "tiny": True,
    }
    assert sum(size.missing.values(), ()) == ("alone", "no base")
    assert {point.label: point.x for point in decode.points} == {"org/base": 1.0, "good": 1.3, "worse": 1.2}
    assert [point.label for point in decode.points if point.optimal] == ["org/base", "good"]
    assert "no decode speed under these conditions" in decode.missing
    with pytest.raises(RequestError, match="unknown metric 'kl'.*allowed: kl_divergence"):
        plots(build_overview(measured), "kl")
    with pytest.raises(RequestError, match="no quality was measured"):
        plots(build_overview([output("a", 1)]), "perplexity")
    assert plots(build_overview([output("a", 1)])) == ()


def test_the_metric_can_be_chosen_and_its_direction_is_known() -> None:
    accuracy = Measurement("acc", "arc", 0.5, 0.02, 100, {"num_fewshot": 0})
    better = Measurement("acc", "arc", 0.6, 0.02, 100, {"num_fewshot": 0})
    measured = [output("a", 900, (*kl(0.1), accuracy)), output("b", 950, (*kl(0.2), better))]
    (plot,) = plots(build_overview(measured), "acc")
    assert not plot.y_lower_is_better
    assert [point.label for point in plot.points if point.optimal] == ["a", "b"]
    assert plot.missing == {"no acc under these conditions": ("org/base",)}
    lower = ["perplexity", "word_perplexity", "kl_divergence", "bits_per_byte", "time_to_first_token_seconds"]
    assert all(map(lower_is_better, lower))
    assert not any(map(lower_is_better, ["acc_norm", "exact_match", "prefill_tokens_per_second", "top1_agreement"]))


def test_models_with_fewer_tokens_are_compared_by_bits_per_byte() -> None:
    def carried(value: float, tokens: int) -> tuple[Measurement, ...]:
        return kl(value, tokens=tokens, carried=True, shared=tokens / 200)

    def bits(value: float, tokens: int) -> tuple[Measurement, ...]:
        return tuple(text(metric, value, tokens=tokens, bytes=400) for metric in ("bits_per_byte", "tokens_per_byte"))

    measured = [
        output("same", 900, (*kl(0.1), *bits(1.2, 100)), base_quality=bits(1.0, 100)),
        output("fewer", 800, (*carried(0.2, 110), *bits(1.3, 110)), base_quality=bits(1.0, 100)),
        output("fewest", 700, (*carried(0.3, 120), *bits(1.4, 120)), base_quality=bits(1.0, 100)),
    ]
    overview = build_overview(measured)
    found = {(each.metric, each.conditions): set(each.cells) for each in overview.columns}
    every = {"org/base", "same", "fewer", "fewest"}
    assert found == {
        ("kl_divergence", "the same tokens"): {"org/base", "same"},
        ("kl_divergence", "carried to fewer tokens"): {"org/base", "fewer", "fewest"},
        ("bits_per_byte", ""): every,
        ("tokens_per_byte", ""): every,
    }
    (plot,) = plots(overview)
    assert plot.y_title == "bits per byte (lower is better)"
    assert {point.label for point in plot.points} == every
    assert plots(build_overview(measured[1:]))[0].y_title.startswith("KL divergence")
    assert lower_is_better("tokens_per_byte")


def test_nan_is_not_plotted() -> None:
    nan = [output("a", 900, kl(float("nan"))), output("b", 900, kl(0.3))]
    (plot,) = plots(build_overview(nan))
    assert plot.missing == {"value is NaN or inf": ("a",)}


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_are_round_and_span_the_range(low: float, width: float) -> None:
    if 0 < width < 1e-6 * max(1.0, abs(low)):
        width = 0.0
    found = ticks(low, low + width)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step and found[-1] >= low + width - 1e-6 * step
    assert 2 <= len(found) <= 10
    digits = f"{step:.6e}".split("e")[0].rstrip("0").rstrip(".")
    assert digits in ("1", "2", "5")


def test_labels_stay_in_the_plot_and_do_not_overlap() -> None:
    measured = [output(f"a-model-with-a-long-name-{i}", 800 + i, kl(0.1 + i / 1000)) for i in range(5)]
    (plot,) = plots(build_overview(measured))
    drawing = draw(plot)
    for mark in drawing.marks:
        assert 0 <= mark.x <= WIDTH and 0 <= mark.y <= HEIGHT
        assert mark.low is not None or mark.point.is_base
    assert len({(round(mark.label_y / 4), mark.anchor) for mark in drawing.marks}) == len(drawing.marks)
