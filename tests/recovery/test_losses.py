"""The losses as pure functions, and a step's loss computed chunk by chunk against all at once."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink import RequestError
from optimum_ishrink.architectures.axes import layers_with
from optimum_ishrink.architectures.model_class import bind_config
from optimum_ishrink.modeling.head import Head, chunked_sum
from optimum_ishrink.recovery.loss import parse_loss
from optimum_ishrink.recovery.loss_registry import LOSSES
from optimum_ishrink.recovery.losses.attention import attention
from optimum_ishrink.recovery.losses.ce import cross_entropy
from optimum_ishrink.recovery.losses.hidden import hidden
from optimum_ishrink.recovery.losses.kl import kl
from optimum_ishrink.recovery.observe import observe
from optimum_ishrink.recovery.student import Student, count_tokens
from optimum_ishrink.recovery.targets import IGNORED, Targets, TopK, top_k
from optimum_ishrink.recovery.teacher import ChunkOfTeacher, LayerMap, Lesson, LiveTeacher
from tests.helpers.tiny import ALL_VARIANTS, FULL, IN_FULL, tiny_config, tiny_model, tiny_raw_config

TOKENS = torch.tensor([[5, 9, 3, 7, 11, 2, 8, 4], [6, 1, 14, 9, 9, 12, 3, 10]])
WINDOWS = torch.arange(2)


def random(*shape: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def labels_for(logits: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(logits), dtype=torch.int64)


@given(st.integers(0, 99), st.sampled_from([0.5, 1.0, 2.0]), st.booleans())
def test_a_distribution_has_no_divergence_from_itself(seed: int, temperature: float, cut: bool) -> None:
    logits = random(5, 13, seed=seed)
    teacher: Any = top_k(logits, 4, temperature=temperature) if cut else logits
    found = kl(logits, Targets(labels_for(logits), teacher, temperature))
    torch.testing.assert_close(found, torch.zeros(5), atol=2e-5, rtol=0)
    if not cut:
        assert (found == 0).all()


@given(st.integers(0, 99), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_top_k_with_all_tokens_is_the_whole_divergence(seed: int, temperature: float) -> None:
    logits = random(5, 13, seed=seed).requires_grad_()
    teacher = random(5, 13, seed=seed + 1)
    whole = kl(logits, Targets(labels_for(logits), teacher, temperature))
    (gradient,) = torch.autograd.grad(whole.sum(), logits)
    parts = kl(logits, Targets(labels_for(logits), top_k(teacher, 13, temperature=temperature), temperature))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.autograd.grad(parts.sum(), logits)[0], gradient, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 99), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_divergence_is_its_formula_with_its_gradient(seed: int, temperature: float) -> None:
    logits, teacher = random(5, 13, seed=seed).requires_grad_(), random(5, 13, seed=seed + 1)
    log_p, log_q = (teacher / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1)
    expected = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
    found = kl(logits, Targets(labels_for(logits), teacher, temperature))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.arange(1.0, 6.0)
    ours, theirs = (torch.autograd.grad((weights * values).sum(), logits)[0] for values in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 99), st.integers(1, 12), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_divergence_of_the_top_is_its_formula_with_its_gradient(seed: int, k: int, temperature: float) -> None:
    logits, teacher = random(5, 13, seed=seed).requires_grad_(), random(5, 13, seed=seed + 1)
    top = top_k(teacher, k, temperature=temperature)
    rounded = TopK(top.log_probs.half(), top.indices, top.log_tail)  # as on disk: its mass is not quite 1
    found = kl(logits, Targets(labels_for(logits), rounded, temperature))
    log_q = (logits / temperature).log_softmax(-1)
    log_p, log_p_tail = rounded.log_probs.float(), top.log_tail
    log_q_tail = log_q.scatter(-1, top.indices, float("-inf")).logsumexp(-1)
    expected = (log_p.exp() * (log_p - log_q.gather(-1, top.indices))).sum(-1)
    expected = temperature**2 * (expected + log_p_tail.exp() * (log_p_tail - log_q_tail))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.arange(1.0, 6.0)
    ours, theirs = (torch.autograd.grad((weights * values).sum(), logits)[0] for values in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 99), st.integers(1, 11))
def test_more_of_the_top_tells_more(seed: int, k: int) -> None:
    logits, teacher = random(6, 13, seed=seed), random(6, 13, seed=seed + 1)
    found = [kl(logits, Targets(labels_for(logits), top_k(teacher, n))) for n in (k, k + 1, 13)]
    assert (found[0] >= -1e-5).all()
    assert (found[0] <= found[1] + 1e-5).all()
    assert (found[1] <= found[2] + 1e-5).all()


def test_a_teacher_that_is_certain_has_no_tail() -> None:
    teacher = torch.full((1, 13), -1e9)
    teacher[0, 3] = 0.0
    logits = random(1, 13).requires_grad_()
    found = kl(logits, Targets(labels_for(logits), top_k(teacher, 2)))
    found.sum().backward()
    torch.testing.assert_close(found, -logits.log_softmax(-1)[:, 3])
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_divergence_at_a_temperature_is_scaled_by_its_square() -> None:
    logits, teacher = random(4, 13), random(4, 13, seed=1)
    plain = kl(logits / 2, Targets(labels_for(logits), teacher / 2))
    torch.testing.assert_close(kl(logits, Targets(labels_for(logits), teacher, 2.0)), 4 * plain)


def test_kl_without_a_teacher() -> None:
    with pytest.raises(RequestError, match="'kl' compares with a teacher, and there is none"):
        kl(random(2, 5), Targets(torch.zeros(2, dtype=torch.int64)))


def test_where_there_is_no_label_there_is_no_loss_and_no_gradient() -> None:
    logits = random(4, 13).requires_grad_()
    found = cross_entropy(logits, Targets(torch.tensor([3, IGNORED, 5, IGNORED])))
    found.sum().backward()
    assert (found[[1, 3]] == 0).all()
    assert logits.grad is not None
    assert (logits.grad[[1, 3]] == 0).all()
    assert (logits.grad[[0, 2]] != 0).any(-1).all()
    torch.testing.assert_close(found[0], -logits.log_softmax(-1)[0, 3])


def test_hidden_states_are_compared_by_share() -> None:
    teacher = random(5, 8)
    assert (hidden(teacher, teacher) == 0).all()
    torch.testing.assert_close(hidden(torch.zeros(5, 8), 1000 * teacher), torch.ones(5))
    torch.testing.assert_close(hidden(1.1 * teacher, teacher), torch.full((5,), 0.01))


def test_relations_are_causal_and_need_no_equal_heads() -> None:
    student, teacher = random(2, 3, 6, 4, scale=1), random(2, 3, 6, 4, seed=1, scale=1)
    assert (attention(teacher, teacher) == 0).all()
    before = attention(student, teacher)
    assert (before >= 0).all()
    assert (before[:, 0] == 0).all()
    student[:, :, 4:] += 5.0
    torch.testing.assert_close(attention(student, teacher)[:, :4], before[:, :4])
    assert attention(student[:, :2], teacher).shape == (2, 6)
    assert attention(student[:, :2].requires_grad_(), teacher).sum().isfinite()


# Weighted sums.


def test_losses_are_found_by_their_files() -> None:
    assert LOSSES.names() == ["attention", "ce", "hidden", "jsd", "kl", "reverse-kl", "skew-kl", "skew-reverse-kl"]
    for name in LOSSES:
        assert LOSSES[name].formula
        assert LOSSES[name].reference


def test_sums_are_parsed() -> None:
    terms = parse_loss("kl + hidden:0.1")
    assert [(term.loss.name, term.weight) for term in terms] == [("kl", 1.0), ("hidden", 0.1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lk", "unknown loss 'lk'.*allowed: attention, ce, hidden, jsd, kl, reverse-kl"),
        ("hiden:0.1", "unknown loss 'hiden' .did you mean 'hidden'"),
        ("kl:-1", "weight of loss 'kl' must be a positive number, not '-1'"),
        ("kl:much", "must be a positive number, not 'much'"),
        ("kl:nan", "must be a positive number"),
        ("kl+ce+kl:2", "loss 'kl' appears twice"),
        ("", "unknown loss ''"),
    ],
)
def test_sums_that_are_none(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_loss(text)


# The step.


@pytest.mark.parametrize(("model_type", "variant"), ALL_VARIANTS)
def test_the_head_is_the_model_classes_own(model_type: str, variant: int) -> None:
    model = tiny_model(tiny_config(model_type, variant))
    with torch.no_grad():
        shows_values = model_type in IN_FULL  # some classes compute attention in a function of their own
        seen = observe(model, TOKENS, layers=True, values=shows_values)
        logits = torch.stack([Head(model)(rows, seen.output_class) for rows in seen.last])
        torch.testing.assert_close(logits, model(input_ids=TOKENS, use_cache=False).logits, atol=1e-6, rtol=1e-6)
        plain = observe(model, TOKENS)
    torch.testing.assert_close(plain.last, seen.last)
    assert (len(seen.layers), plain.layers, plain.values) == (4, (), ())
    recorded = [values for values in seen.values if values is not None]
    kinds = getattr(model.config, "layer_types", None) or [""] * 4
    having = layers_with(bind_config(tiny_raw_config(model_type, variant))[1], "num_key_value_heads")
    attending = [layer for layer in having if kinds[layer] not in ("conv", "linear_attention")]
    assert not shows_values or len(recorded) == len(attending) > 0
    assert all(values.shape[:3] == (2, recorded[0].shape[1], 8) for values in recorded)
    assert "forward" not in model.base_model.__dict__


def test_values_that_a_class_does_not_show_are_refused() -> None:
    with pytest.raises(RequestError, match="reads the values of every layer, and the class of mpt computes attention"):
        observe(tiny_model(tiny_config("mpt")), TOKENS, values=True)


def step(
    model: Any, teacher: Any, loss: str, *, chunk: int, labels: torch.Tensor = TOKENS, **how: Any
) -> torch.Tensor:
    learner = LiveTeacher(teacher, layers=True, values=True, **how)
    student = Student(model, parse_loss(loss), learner, LayerMap.even(4, 4), chunk=chunk)
    found: torch.Tensor = student(TOKENS, labels, WINDOWS, count_tokens(labels))
    return found


def test_attention_is_compared_where_both_models_have_it() -> None:
    model, teacher = (tiny_model(tiny_config("lfm2"), seed) for seed in (0, 1))
    found = step(model, teacher, "attention", chunk=10**6)
    seen, lesson = (observe(each, TOKENS, values=True).values for each in (model, teacher))
    both = [attention(seen[layer][:, :, :-1], lesson[layer][:, :, :-1]).sum() for layer in (1, 3)]
    torch.testing.assert_close(found[1], (torch.stack(both).mean() / count_tokens(TOKENS)[1]).float())


def test_models_without_attention_in_common_are_not_compared() -> None:
    full, other = tiny_model(tiny_config("lfm2")), tiny_model(tiny_config("lfm2", layer_types=[FULL, "conv"] * 2))
    with pytest.raises(RequestError, match="no layer of the model with attention corresponds to one of the teacher's"):
        step(full, other, "attention", chunk=10**6)


def gradients(model: Any, total: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen_head", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite", "gpt2"])
def test_chunks_and_blocks_give_what_all_positions_give(
    model_type: str, frozen_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, teacher = (tiny_model(tiny_config(model_type), seed) for seed in (0, 1))
    model.get_output_embeddings().requires_grad_(not frozen_head)
    if frozen_head:
        model.get_input_embeddings().requires_grad_(False)
    labels = TOKENS.clone()
    labels[0, 3:5] = IGNORED
    whole = model(input_ids=TOKENS).logits[:, :-1].flatten(0, 1)
    with torch.no_grad():
        wanted = teacher(input_ids=TOKENS).logits[:, :-1].flatten(0, 1)
    targets = Targets(labels[:, 1:].flatten(), wanted)
    terms = [kl(whole, targets).mean(), cross_entropy(whole, targets).sum() / 12]
    expected = gradients(model, terms[0] + 0.5 * terms[1])
    for chunk, block in ((1, 1), (5 * 300, 2 * 300), (4 * 300, 10**6), (10**6, 10**6), (10**6, 1)):
        monkeypatch.setattr("optimum_ishrink.modeling.head.BLOCK", block)
        found = step(model, teacher, "kl+ce:0.5", chunk=chunk, labels=labels)
        torch.testing.assert_close(found[1:].detach(), torch.stack(terms).detach(), atol=1e-5, rtol=1e-5)
        for name, gradient in gradients(model, found[0]).items():
            torch.testing.assert_close(gradient, expected[name], atol=2e-5, rtol=1e-4, msg=name)


def test_a_chunk_of_the_teacher_is_computed_once_and_not_kept() -> None:
    rows, asked = torch.arange(14.0).view(7, 2), []

    def distribution(part: slice) -> torch.Tensor:
        asked.append(part)
        return rows[part]

    taught = ChunkOfTeacher(Lesson(distribution), 7, 4)
    blocks = [slice(0, 3), slice(3, 4), slice(4, 6), slice(6, 7)]
    assert torch.equal(torch.cat([cast(torch.Tensor, taught(block)) for block in blocks]), rows)
    assert asked == [slice(0, 4), slice(4, 7)]
    assert torch.equal(cast(torch.Tensor, taught(slice(0, 4))), rows[:4])  # once more, for a backward pass
    held = [value for value in vars(taught).values() if isinstance(value, torch.Tensor)]
    assert all(not value.numel() for value in held)
    assert ChunkOfTeacher(Lesson(), 7, 4)(slice(0, 2)) is None


@pytest.mark.parametrize("loss", ["hidden", "attention", "kl+hidden:0.1+attention:0.2"])
def test_a_model_is_no_distance_from_itself(loss: str) -> None:
    model, teacher = (tiny_model(tiny_config("llama"), 0) for _ in range(2))
    found = step(model, teacher, loss, chunk=10**6)
    assert (found.abs() < 1e-6).all()
    other = step(tiny_model(tiny_config("llama"), 1), teacher, loss, chunk=10**6)
    terms = parse_loss(loss)
    assert (other[1:] > 0).all()
    torch.testing.assert_close(other[0], sum(t.weight * value for t, value in zip(terms, other[1:])))


@pytest.mark.parametrize("loss", ["hidden", "attention"])
def test_layer_losses_reach_every_layer(loss: str) -> None:
    model, teacher = (tiny_model(tiny_config("llama"), seed) for seed in (0, 1))
    found = gradients(model, step(model, teacher, loss, chunk=10**6)[0])
    for layer in range(4):
        assert found[f"model.layers.{layer}.self_attn.v_proj.weight"].abs().sum() > 0


def test_a_batch_without_any_label_gives_zero() -> None:
    model = tiny_model(tiny_config("llama"))
    labels = torch.full_like(TOKENS, IGNORED)
    found = Student(model, parse_loss("ce"))(TOKENS, labels, WINDOWS, count_tokens(labels))
    assert found[0].item() == 0.0


def test_a_step_without_gradients_gives_the_same() -> None:
    model, teacher = (tiny_model(tiny_config("llama"), seed) for seed in (0, 1))
    with torch.no_grad():
        quiet = step(model, teacher, "kl", chunk=1200)
    torch.testing.assert_close(quiet, step(model, teacher, "kl", chunk=1200).detach())


def test_layers_are_mapped() -> None:
    assert LayerMap.of_retained([0, 1, 4, 5], 6) == LayerMap((0, 3, 4, 5), (0, 1, 4, 5))
    assert LayerMap.even(3, 6).outputs == (1, 3, 5)
    assert LayerMap.even(4, 2).outputs == (0, 0, 0, 1)


def test_hidden_states_of_another_width() -> None:
    model, teacher = tiny_model(tiny_config("llama")), tiny_model(tiny_config("llama", hidden_size=48))
    with pytest.raises(RequestError, match="the teacher's have 48 entries and the model's 32"):
        step(model, teacher, "hidden", chunk=10**6)


def test_the_sum_of_chunks_counts_every_row() -> None:
    rows = random(7, 3).requires_grad_()
    seen: list[int] = []

    def of_chunk(logits: torch.Tensor, part: slice) -> torch.Tensor:
        seen.extend(range(part.start, part.stop))
        return logits.square().sum().reshape(1)

    (total,) = chunked_sum(rows, lambda states: states * 2, of_chunk, rows=3, head_trains=False)
    (3 * total).backward()
    assert seen == list(range(7))
    torch.testing.assert_close(rows.grad, 24 * rows.detach())


def test_top_k_keeps_parts() -> None:
    top = top_k(random(6, 13), 4)
    part = top.part(slice(2, 5))
    assert isinstance(part, TopK)
    torch.testing.assert_close(part.log_probs, top.log_probs[2:5])
    mass = top.log_probs.exp().sum(-1) + top.log_tail.exp()
    torch.testing.assert_close(mass, torch.ones(6))
