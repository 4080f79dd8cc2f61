"""The divergences between teacher and student: their formulas, their gradients, and their limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink import RequestError
from optimum_ishrink.recovery.loss import parse_loss
from optimum_ishrink.recovery.loss_registry import LOSSES
from optimum_ishrink.recovery.losses.jsd import jsd
from optimum_ishrink.recovery.losses.kl import kl
from optimum_ishrink.recovery.losses.reverse_kl import reverse_kl
from optimum_ishrink.recovery.losses.skew_kl import skew_kl
from optimum_ishrink.recovery.losses.skew_reverse_kl import skew_reverse_kl
from optimum_ishrink.recovery.student import Student, count_tokens
from optimum_ishrink.recovery.targets import IGNORED, Targets, top_k
from optimum_ishrink.recovery.teacher import LayerMap, LiveTeacher
from tests.helpers.tiny import tiny_config, tiny_model

NAMES = ("reverse-kl", "jsd", "skew-kl", "skew-reverse-kl")
BETA, SKEW = 0.3, 0.2


def relative(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first * (first.log() - second.log())).sum(-1)


PLAIN: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "reverse-kl": lambda p, q: relative(q, p),
    "jsd": lambda p, q: (
        BETA * relative(p, BETA * p + (1 - BETA) * q) + (1 - BETA) * relative(q, BETA * p + (1 - BETA) * q)
    ),
    "skew-kl": lambda p, q: relative(p, SKEW * p + (1 - SKEW) * q),
    "skew-reverse-kl": lambda p, q: relative(q, (1 - SKEW) * p + SKEW * q),
}


def random(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def targets(teacher: Any, temperature: float = 1.0, count: int = 5, **how: Any) -> Targets:
    return Targets(
        torch.zeros(count, dtype=torch.int64), teacher, temperature, **{"jsd_beta": BETA, "skew": SKEW, **how}
    )


@given(st.integers(0, 99), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(NAMES), st.sampled_from([None, 4, 13]))
def test_a_distribution_has_no_divergence_from_itself(seed: int, temperature: float, name: str, k: int | None) -> None:
    logits = random(5, 13, seed=seed).requires_grad_()
    teacher: Any = logits.detach() if k is None else top_k(logits.detach(), k, temperature=temperature)
    found = LOSSES[name].function(logits, targets(teacher, temperature))
    torch.testing.assert_close(found, torch.zeros(5), atol=2e-5, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros(5, 13), atol=2e-5, rtol=0)


@given(st.integers(0, 99), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(NAMES))
def test_it_is_its_formula_with_its_gradient(seed: int, temperature: float, name: str) -> None:
    logits, teacher = random(5, 13, seed=seed).requires_grad_(), random(5, 13, seed=seed + 1)
    p, q = (teacher.double() / temperature).softmax(-1), (logits.double() / temperature).softmax(-1)
    expected = (temperature**2 * PLAIN[name](p, q)).float()
    found = LOSSES[name].function(logits, targets(teacher, temperature))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found >= -1e-6).all()
    weights = torch.arange(1.0, 6.0)
    ours, theirs = (torch.autograd.grad((weights * values).sum(), logits)[0] for values in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@given(st.integers(0, 99), st.integers(1, 12), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from(NAMES))
def test_of_the_top_all_others_are_one(seed: int, k: int, temperature: float, name: str) -> None:
    logits, teacher = random(5, 13, seed=seed).requires_grad_(), random(5, 13, seed=seed + 1)
    top = top_k(teacher, k, temperature=temperature)
    found = LOSSES[name].function(logits, targets(top, temperature))

    def coarse(values: torch.Tensor) -> torch.Tensor:
        whole = (values.double() / temperature).softmax(-1)
        named = whole.gather(-1, top.indices)
        return torch.cat([named, whole.scatter(-1, top.indices, 0.0).sum(-1, keepdim=True)], -1)

    expected = (temperature**2 * PLAIN[name](coarse(teacher), coarse(logits))).float()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    ours, theirs = (torch.autograd.grad(values.sum(), logits)[0] for values in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    whole = LOSSES[name].function(logits, targets(teacher, temperature))
    assert (found <= whole + 1e-4).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_top_k_with_all_tokens_is_the_whole_divergence(name: str) -> None:
    logits, teacher = random(5, 13), random(5, 13, seed=1)
    parts = LOSSES[name].function(logits, targets(top_k(teacher, 13)))
    torch.testing.assert_close(parts, LOSSES[name].function(logits, targets(teacher)), atol=1e-5, rtol=1e-5)


def test_their_limits_are_the_two_directions_of_kl() -> None:
    logits, teacher = random(5, 13, scale=1.0), random(5, 13, seed=1, scale=1.0)
    forward, backward = kl(logits, targets(teacher)), reverse_kl(logits, targets(teacher))
    torch.testing.assert_close(jsd(logits, targets(teacher, jsd_beta=1e-3)) / 1e-3, forward, atol=0, rtol=2e-2)
    torch.testing.assert_close(jsd(logits, targets(teacher, jsd_beta=0.999)) / 1e-3, backward, atol=0, rtol=2e-2)
    torch.testing.assert_close(skew_kl(logits, targets(teacher, skew=1e-5)), forward, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(skew_reverse_kl(logits, targets(teacher, skew=1e-5)), backward, atol=1e-4, rtol=1e-3)
    # The Jensen-Shannon divergence proper is symmetric and at most log 2.
    half = jsd(logits, targets(teacher, jsd_beta=0.5))
    torch.testing.assert_close(half, jsd(teacher, targets(logits, jsd_beta=0.5)))
    assert (jsd(100 * logits, targets(-100 * logits, jsd_beta=0.5)) <= 0.6932).all()


@pytest.mark.parametrize("name", NAMES)
def test_certain_models_give_finite_values_and_gradients(name: str) -> None:
    teacher, logits = torch.full((2, 13), -1e4), torch.full((2, 13), -1e4)
    teacher[:, 3], logits[:, 5] = 1e4, 1e4
    for wanted in (teacher, top_k(teacher, 2)):
        student = logits.clone().requires_grad_()
        found = LOSSES[name].function(student, targets(wanted, count=2))
        found.sum().backward()
        assert found.isfinite().all()
        assert student.grad is not None
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_without_a_teacher(name: str) -> None:
    with pytest.raises(RequestError, match=f"the loss '{name}' compares with a teacher, and there is none"):
        LOSSES[name].function(random(2, 5), Targets(torch.zeros(2, dtype=torch.int64)))


@pytest.mark.parametrize("name", NAMES)
def test_where_the_teacher_predicts_none_the_text_says_what_follows(name: str) -> None:
    logits, teacher = random(5, 13), random(5, 13, seed=1)
    within = torch.tensor([IGNORED, 4, IGNORED, IGNORED, 7])
    taught = within == IGNORED
    found = LOSSES[name].function(logits, replace(targets(teacher[taught]), within=within))
    torch.testing.assert_close(found[taught], LOSSES[name].function(logits[taught], targets(teacher[taught])))
    torch.testing.assert_close(found[~taught], -logits.log_softmax(-1)[[1, 4], [4, 7]])


TOKENS = torch.tensor([[5, 9, 3, 7, 11, 2, 8, 4], [6, 1, 14, 9, 9, 12, 3, 10]])


@pytest.mark.parametrize("name", NAMES)
def test_chunks_give_what_all_positions_give(name: str) -> None:
    model, teacher = (tiny_model(tiny_config("llama", num_hidden_layers=1), seed) for seed in (0, 1))
    whole = model(input_ids=TOKENS).logits[:, :-1].flatten(0, 1)
    with torch.no_grad():
        wanted = teacher(input_ids=TOKENS).logits[:, :-1].flatten(0, 1)
    expected = LOSSES[name].function(whole, targets(wanted, count=14)).mean()
    gradients = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    for chunk in (1, 4 * 300, 10**6):
        model.zero_grad()
        learner, layers = LiveTeacher(teacher), LayerMap.even(1, 1)
        student = Student(model, parse_loss(name), learner, layers, jsd_beta=BETA, skew=SKEW, chunk=chunk)
        found = student(TOKENS, TOKENS, torch.arange(2), count_tokens(TOKENS))
        torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
        found[0].backward()
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, gradient, atol=2e-5, rtol=1e-4)
