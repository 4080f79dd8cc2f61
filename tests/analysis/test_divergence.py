from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from optimum_ishrink.analysis.divergence import Reference, measure_masked
from optimum_ishrink.analysis.masking import mask_attention, mask_mlp, mask_removal, together
from optimum_ishrink.analysis.sensitivity import measure_layers
from optimum_ishrink.analysis.zeroing import KINDS, Removal, choose_removal
from optimum_ishrink.errors import NotFiniteError
from optimum_ishrink.evaluation.text_statistics import kl_divergence, token_statistics
from tests.helpers.scored_models import bound_model, random_scores
from tests.helpers.tiny import LAYOUT_CASES, VOCAB

WINDOWS = torch.randint(3, VOCAB, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_nothing_masked_is_no_divergence_at_all(model_type: str, variant: int) -> None:
    model, binding = bound_model(model_type, variant)
    reference = Reference(model, WINDOWS)
    nothing = mask_removal(model, binding, choose_removal(binding, random_scores(binding), KINDS["all"], 0.0))
    for whole in (True, False):
        found = {m.metric: m for m in measure_masked(reference, lambda _: nothing, "text", whole=whole)}
        assert found["kl_divergence"].value == 0
        assert found["top1_agreement"].value == 1
        nll = token_statistics(model, None, WINDOWS)["nll"]
        assert found["perplexity"].value == pytest.approx(nll.mean().exp().item(), rel=1e-9)


def test_logits_are_kept_up_to_a_limit_and_computed_again_beyond_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, binding = bound_model("llama")
    removal = choose_removal(binding, random_scores(binding), KINDS["all"], 0.3)
    masks = mask_removal(model, binding, removal)
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    model.register_forward_pre_hook(count)
    nbytes = 3 * 11 * VOCAB * 4
    found = []
    for limit, expected in ((nbytes, 3 + 2 * 3), (nbytes - 1, 2 * 2 * 3)):
        reference, runs = Reference(model, WINDOWS, limit), 0
        twice = [measure_masked(reference, lambda _: masks, "text") for _ in range(2)]
        assert runs == expected
        found += twice
    assert all(each == found[0] for each in found)
    assert {m.n for m in found[0]} == {3}
    assert all(m.stderr is not None and m.settings == {"tokens": 33} for m in found[0])


def test_predictions_that_are_not_finite() -> None:
    model, _ = bound_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NotFiniteError, match=r"gives NaN on words.txt, first in lm_head, whose weights hold NaN"):
        measure_masked(Reference(model, WINDOWS), lambda _: (), "words.txt")


def test_a_mask_that_makes_predictions_overflow() -> None:
    model, _ = bound_model("llama")

    @contextmanager
    def overflow() -> Iterator[None]:
        weight = model.lm_head.weight
        before = weight[5].clone()
        with torch.no_grad():
            weight[5] = float("inf")
        yield
        with torch.no_grad():
            weight[5] = before

    with pytest.raises(NotFiniteError, match=r"words.txt are not finite \(.*\) with a part of the model at zero"):
        measure_masked(Reference(model, WINDOWS), lambda _: (overflow,), "words.txt")


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi", "gpt2", "mixtral", "granite", "smollm3"])
def test_the_sensitivity_of_a_layer_is_the_divergence_without_it(model_type: str) -> None:
    model, binding = bound_model(model_type)
    reference = Reference(model, WINDOWS)
    found = list(measure_layers(reference, binding, range(4), "text"))
    assert [layer.layer for layer in found] == [0, 1, 2, 3]
    for layer in found:
        masks = {
            "attention": mask_attention(model, binding, layer.layer),
            "mlp": mask_mlp(model, binding, layer.layer),
            "block": mask_removal(model, binding, Removal((layer.layer,), ((),) * 4, ((),) * 4)),
        }
        for part, parts in masks.items():
            with torch.no_grad():
                base = model(WINDOWS).logits[:, :-1]
                with together(parts):
                    divergence = kl_divergence(base, model(WINDOWS).logits[:, :-1])
            measured = getattr(layer, part)
            assert measured.metric == "kl_divergence"
            assert measured.value == pytest.approx(divergence.mean().item(), rel=1e-4)
            assert measured.value > 0
    # Some of them alone are the same: what is in front is run again.
    assert list(measure_layers(reference, binding, [1, 3], "text")) == [found[1], found[3]]
    assert list(measure_layers(reference, binding, [], "text")) == []
