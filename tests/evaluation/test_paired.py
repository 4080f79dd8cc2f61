from __future__ import annotations

import math

import numpy as np
import pytest

from optimum_ishrink.evaluation.comparison import compare, compare_text
from optimum_ishrink.evaluation.paired import Stratum, mcnemar, paired_interval
from optimum_ishrink.evaluation.text_quality import WindowFigures, bits_per_byte


def answers(both: int, base_only: int, shrunk_only: int, neither: int) -> Stratum:
    cells = [((1.0, 1.0), both), ((1.0, 0.0), base_only), ((0.0, 1.0), shrunk_only), ((0.0, 0.0), neither)]
    pairs = [pair for pair, count in cells for _ in range(count)]
    return Stratum(1.0, [base for base, _ in pairs], [shrunk for _, shrunk in pairs])


@pytest.mark.parametrize(
    ("base_only", "shrunk_only", "expected"),
    [
        (10, 2, 2 * (1 + 12 + 66) / 4096),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (3, 3, 1.0),
        (0, 0, 1.0),
        (1, 2, 1.0),
    ],
)
def test_mcnemar_is_a_binomial_tail_on_both_sides(base_only: int, shrunk_only: int, expected: float) -> None:
    assert mcnemar(base_only, shrunk_only) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_agrees_with_scipy_where_counts_are_large() -> None:
    stats = pytest.importorskip("scipy.stats")
    for base_only, shrunk_only in ((40, 61), (500, 430), (3000, 2800)):
        expected = stats.binomtest(base_only, base_only + shrunk_only, 0.5).pvalue
        assert mcnemar(base_only, shrunk_only) == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_means_is_the_normal_one_for_large_samples() -> None:
    generator = np.random.default_rng(1)
    base = generator.normal(3, 1, 2000)
    shrunk = base + generator.normal(-0.2, 0.5, 2000)
    found = paired_interval([Stratum(1.0, base.tolist(), shrunk.tolist())])
    gap = shrunk - base
    half = 1.96 * gap.std(ddof=1) / math.sqrt(2000)
    assert found.difference == pytest.approx(gap.mean())
    assert found.difference_low == pytest.approx(gap.mean() - half, abs=half / 10)
    assert found.difference_high == pytest.approx(gap.mean() + half, abs=half / 10)
    assert found.ratio == pytest.approx(shrunk.mean() / base.mean())
    # Delta method for a ratio of means of pairs.
    error = (shrunk - found.ratio * base).std(ddof=1) / base.mean() / math.sqrt(2000)
    assert found.ratio_low == pytest.approx(found.ratio - 1.96 * error, abs=error / 5)
    assert found.ratio_high == pytest.approx(found.ratio + 1.96 * error, abs=error / 5)


def test_the_interval_has_its_stated_coverage() -> None:
    generator = np.random.default_rng(0)
    shares, hits = [0.4, 0.12, 0.06, 0.42], 0  # true ratio 0.46 / 0.52
    for trial in range(300):
        found = paired_interval([answers(*generator.multinomial(300, shares))], seed=trial)
        assert found.ratio_low is not None
        assert found.ratio_high is not None
        hits += found.ratio_low <= 0.46 / 0.52 <= found.ratio_high
    assert 0.92 <= hits / 300 <= 0.98


def test_pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(size=500)
    base, shrunk = 5 + hard, 4.9 + hard + generator.normal(0, 0.05, 500)
    paired = paired_interval([Stratum(1.0, base.tolist(), shrunk.tolist())])
    loose = paired_interval([Stratum(1.0, base.tolist(), generator.permutation(shrunk).tolist())])
    assert paired.difference == pytest.approx(loose.difference)
    width, loose_width = (each.difference_high - each.difference_low for each in (paired, loose))
    assert width < loose_width / 10


def test_a_few_answers_that_all_agree_still_have_an_interval() -> None:
    few, many = (paired_interval([answers(n // 2, 0, 0, n // 2)]) for n in (8, 20_000))
    assert few.ratio == many.ratio == 1
    assert few.ratio_low is not None and few.ratio_low < 0.9
    assert many.ratio_low is not None and many.ratio_low > 0.999


def test_a_base_that_is_never_right_has_no_ratio() -> None:
    found = paired_interval([answers(0, 0, 3, 17)])
    assert (found.ratio, found.ratio_low, found.ratio_high) == (None, None, None)
    assert found.difference == pytest.approx(0.15)
    rarely = paired_interval([answers(1, 0, 0, 19)])
    assert rarely.ratio == 1
    assert rarely.ratio_high is None  # many draws have no right answer of the base


@pytest.mark.parametrize(
    ("base", "shrunk", "higher_is_better", "expected"),
    [
        (-7.0, -10.0, True, "worse"),
        (-3.0, -2.0, True, "no worse"),
        (-3.0, -2.0, False, "worse"),
        (-2.0, -3.0, False, "no worse"),
        (-0.5, 0.5, True, "no worse"),
        (0.5, -0.5, True, "worse"),
        (-7.0, -7.01, True, "no worse"),
        (-1.0, -1.0, True, "too few questions to tell"),
    ],
)
def test_figures_below_zero_are_compared_by_their_difference(
    base: float, shrunk: float, higher_is_better: bool, expected: str
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1 if base != shrunk else 1, (2, 40))
    noise -= noise.mean(axis=1, keepdims=True)
    stratum = Stratum(1.0, (base + noise[0]).tolist(), (shrunk + noise[1]).tolist())
    found = compare("score", "quiz", [stratum], higher_is_better=higher_is_better)
    assert (found.ratio, found.ratio_low, found.ratio_high) == (None, None, None)
    assert found.difference == pytest.approx(shrunk - base)
    assert found.verdict == expected


def test_strata_are_weighted() -> None:
    small, large = answers(2, 2, 0, 0), answers(10, 0, 0, 30)
    alike = [Stratum(1.0, each.base, each.shrunk) for each in (small, large)]
    by_size = [Stratum(float(len(each.base)), each.base, each.shrunk) for each in (small, large)]
    assert paired_interval(alike).difference == pytest.approx((0.5 + 0.25) / 2 - (1 + 0.25) / 2)
    assert paired_interval(by_size).difference == pytest.approx(12 / 44 - 14 / 44)


def test_the_same_seed_gives_the_same_interval() -> None:
    stratum = Stratum(1.0, [math.sqrt(i) for i in range(1, 20)], [math.sqrt(i + i % 3) for i in range(1, 20)])
    assert paired_interval([stratum], seed=3) == paired_interval([stratum], seed=3)
    assert paired_interval([stratum], seed=3) != paired_interval([stratum], seed=4)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((400, 100, 40, 460), "worse"),
        ((500, 40, 40, 420), "no worse"),
        ((450, 20, 80, 450), "no worse"),
        ((10, 3, 2, 5), "too few questions to tell"),
        ((4, 0, 0, 4), "too few questions to tell"),
        ((100, 30, 20, 100), "too few questions to tell"),
        ((0, 0, 0, 1000), "too few questions to tell"),
    ],
)
def test_verdicts_on_right_and_wrong_answers(counts: tuple[int, int, int, int], expected: str) -> None:
    found = compare("acc", "quiz", [answers(*counts)])
    assert found.verdict == expected
    assert (found.n, found.base_only, found.shrunk_only) == (sum(counts), counts[1], counts[2])
    assert found.p_value == mcnemar(counts[1], counts[2])
    wrong = [Stratum(1.0, [1 - b for b in s.base], [1 - x for x in s.shrunk]) for s in [answers(*counts)]]
    errors = compare("error_rate", "quiz", wrong, higher_is_better=False)
    assert (errors.verdict == "worse") == (expected == "worse")


@pytest.mark.parametrize(
    ("shift", "windows", "expected"),
    [(0.5, 40, "worse"), (0.0, 40, "no worse"), (-0.5, 40, "no worse"), (0.5, 5, "too few windows to tell")],
)
def test_verdicts_on_texts(shift: float, windows: int, expected: str) -> None:
    generator = np.random.default_rng(0)
    nll = generator.uniform(2, 3, windows) * 100
    base = WindowFigures(tuple(nll), (100,) * windows, (400,) * windows)
    shrunk = WindowFigures(tuple(nll + shift * 100 + generator.normal(0, 0.5, windows)), base.tokens, base.bytes)
    perplexity, bits = compare_text(base, shrunk, "words", per_token=True)
    assert (perplexity.metric, perplexity.verdict, bits.verdict) == ("perplexity", expected, expected)
    assert perplexity.ratio == pytest.approx(math.exp(shift), rel=0.01)
    values = [bits_per_byte(each) for each in (base, shrunk)]
    assert values[0] is not None and values[1] is not None
    assert bits.ratio == pytest.approx(values[1].value / values[0].value)
    assert bits.difference == pytest.approx(values[1].value - values[0].value)
    assert [each.metric for each in compare_text(base, shrunk, "words", per_token=False)] == ["bits_per_byte"]
    assert perplexity.p_value is None
    assert perplexity.settings["observations"] == "windows"


def test_a_model_against_itself_is_no_worse() -> None:
    figures = WindowFigures(tuple(100.0 + i for i in range(12)), (50,) * 12, (200,) * 12)
    for found in compare_text(figures, figures, "words", per_token=True):
        assert (found.ratio, found.ratio_low, found.ratio_high, found.verdict) == (1, 1, 1, "no worse")
