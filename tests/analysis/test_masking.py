"""What is masked in a loaded model is what is zero in a model with those weights at zero, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

from optimum_ishrink.analysis.masking import (
    continue_from,
    mask_attention,
    mask_mlp,
    mask_removal,
    skip_layer,
    together,
    zero_columns,
)
from optimum_ishrink.analysis.zeroing import Removal, choose_removal
from optimum_ishrink.architectures.axes import input_readers, layer_module, layers_with
from optimum_ishrink.architectures.description import GROUPS, LAYERS, NEURONS
from optimum_ishrink.architectures.slicing import zero_removed
from optimum_ishrink.core.json_files import read_json
from tests.helpers.cutting import cut_to, load, random_plan
from tests.helpers.scored_models import bound_model, random_scores
from tests.helpers.tiny import CASES, IN_FULL, LAYOUT_CASES, LAYOUTS, VOCAB, adds_to_the_stream, graded, save_tiny

IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def masked_logits(model: Any, masks: Any) -> torch.Tensor:
    with together(masks):
        return logits(model)


def with_weights(model: Any, changed: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return functional_call(model, changed, (IDS,), {"use_cache": False}).logits


def retained(gone: tuple[int, ...], count: int) -> list[int]:
    return sorted(set(range(count)) - set(gone))


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_masked_heads_are_heads_whose_projection_is_zero(model_type: str, variant: int) -> None:
    model, binding = bound_model(model_type, variant)
    removal = choose_removal(binding, random_scores(binding), (GROUPS,), 0.4)
    assert {len(groups) for groups in removal.groups} != {0}
    group = binding.sizes["heads"] // binding.sizes["kv"]
    state = dict(model.named_parameters())
    changed = {}
    for bound in input_readers(binding, GROUPS):
        weight = state[bound.parameter].detach().clone()
        columns = weight if bound.transposed else weight.T
        heads = columns.view(binding.sizes["heads"], -1, columns.shape[1]) if bound.transposed else None
        for one in removal.groups[bound.layer]:
            for head in range(one * group, (one + 1) * group):
                if heads is not None:
                    heads[head] = 0
                else:
                    weight.view(len(weight), binding.sizes["heads"], -1)[:, head] = 0
        changed[bound.parameter] = weight
    expected = with_weights(model, changed)
    found = masked_logits(model, mask_removal(model, binding, removal))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (logits(model) - found).abs().max() > 1e-3


def _has(binding: Any, key: str, gone: tuple[int, ...]) -> bool:
    return bool(set(layers_with(binding, key)) - set(gone))


@pytest.mark.parametrize(
    ("model_type", "variant"), [graded(*case, fast=not case[1]) for case in CASES if adds_to_the_stream(case[0])]
)
def test_a_masked_level_is_the_model_with_those_units_at_zero(model_type: str, variant: int) -> None:
    model, binding = bound_model(model_type, variant)
    dimensions = binding.description.dimensions
    # Where a norm spans the units, the smaller model is another one than that with the units at zero.
    depth, groups, neurons = (
        (key,) if dimensions[key].fixed is None and dimensions[key].inexact is None else ()
        for key in (LAYERS, GROUPS, NEURONS)
    )
    cases = (neurons, (*depth, *groups, *neurons))
    for keys in filter(None, cases):
        removal = choose_removal(binding, random_scores(binding, 3), keys, 0.3, (1, 0))
        # A hybrid's layers that are left may all be without an MLP.
        assert removal.units.keys() == {key for key in keys if key == LAYERS or _has(binding, key, removal.layers)}
        changed = {}
        for name, parameter in model.named_parameters():
            bound = binding.in_memory.get(name)
            if bound is None or bound.layer is None:
                continue
            if bound.layer in removal.layers:
                changed[name] = torch.zeros_like(parameter)
                continue
            keep: dict[str, list[int]] = {}
            if removal.neurons[bound.layer]:
                keep["ffn"] = retained(removal.neurons[bound.layer], binding.sizes["ffn"] * binding.mlps)
            if removal.groups[bound.layer]:
                keep["kv"] = retained(removal.groups[bound.layer], binding.sizes["kv"])
                group = binding.sizes["heads"] // binding.sizes["kv"]
                keep["heads"] = [one * group + i for one in keep["kv"] for i in range(group)]
            changed[name] = zero_removed(parameter.detach(), bound, binding.sizes, keep)
        before = logits(model)
        found = masked_logits(model, mask_removal(model, binding, removal))
        torch.testing.assert_close(found, with_weights(model, changed), atol=1e-5, rtol=1e-5)
        assert (found - before).abs().max() > 1e-3
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_a_skipped_layer_is_a_layer_that_is_not_in_the_checkpoint(
    model_type: str, variant: int, tmp_path: Path
) -> None:
    model, binding = bound_model(model_type, variant)
    if binding.description.dimensions[LAYERS].fixed:
        pytest.skip("a skipped layer is not the identity")
    folder = save_tiny(tmp_path / "base", model.config)
    plan, _, _ = random_plan(read_json(folder / "config.json"), {"num_hidden_layers": 2}, seed=variant)
    cut = load(cut_to(folder, tmp_path / "cut", plan))
    gone = tuple(sorted(set(range(4)) - set(plan.layers)))
    found = masked_logits(model, mask_removal(model, binding, Removal(gone, ((),) * 4, ((),) * 4)))
    torch.testing.assert_close(found, logits(cut), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_running_from_a_layer_on_gives_what_the_whole_run_gives(model_type: str, variant: int) -> None:
    model, binding = bound_model(model_type, variant)
    modules = [model.get_submodule(layer_module(binding, layer)) for layer in range(4)]
    entering: list[torch.Tensor] = []
    outputs: list[int] = []
    handles = []
    for module in modules:

        def see(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            entering.append(args[0] if args else kwargs["hidden_states"])
            outputs.append(len(output) if isinstance(output, tuple) else 0)

        handles.append(module.register_forward_hook(see, with_kwargs=True))
    before = logits(model)
    for handle in handles:
        handle.remove()
    for start in range(4):
        with continue_from(modules, start, entering[start], outputs[0]):
            assert torch.equal(logits(model), before)
            with pytest.raises(RuntimeError), continue_from(modules, 4, entering[0], outputs[0]):
                raise RuntimeError
            assert torch.equal(logits(model), before)
        # The layer returns its input: the layer is skipped.
        with continue_from(modules, start + 1, entering[start], outputs[0]):
            found = logits(model)
        with skip_layer(modules[start]):
            assert torch.equal(logits(model), found)
        assert not torch.equal(found, before)
    assert torch.equal(logits(model), before)
    assert not any("forward" in module.__dict__ for module in modules)


MLPS = ("mlp", "block_sparse_moe", "feed_forward", "shared_mlp")


def _mlp_layers(binding: Any) -> list[int]:
    counts = {bound.layer for bound in binding.tensors.values() for size in ("ffn", "dense_ffn") if bound.counts(size)}
    return sorted(counts - {None})


@pytest.mark.parametrize(
    ("model_type", "variant"),
    [graded(*case, fast=case[0] in LAYOUTS and not case[1]) for case in CASES if case[0] in IN_FULL],
)
def test_the_parts_of_a_layer(model_type: str, variant: int) -> None:
    model, binding = bound_model(model_type, variant)
    whole = logits(model)
    attention, having = layers_with(binding, GROUPS), _mlp_layers(binding)
    for layer in dict.fromkeys((1, 2, attention[0], having[0])):  # with a mixture of experts, one may be dense
        masks = mask_attention(model, binding, layer), mask_mlp(model, binding, layer)
        assert bool(masks[1]) == (layer in having)
        if layer not in attention:
            assert not torch.equal(masked_logits(model, masks[0] or masks[1]), whole)
            continue
        heads = [()] * 4
        heads[layer] = tuple(range(binding.sizes["kv"]))
        every_group = mask_removal(model, binding, Removal((), tuple(heads), ((),) * 4))
        found = masked_logits(model, mask_attention(model, binding, layer))
        assert torch.equal(found, masked_logits(model, every_group))
        assert not torch.equal(found, whole)
        if layer not in having:
            continue
        module = model.get_submodule(layer_module(binding, layer))
        mlps = [child for name, child in module.named_children() if name in MLPS]
        found = masked_logits(model, mask_mlp(model, binding, layer))
        assert not torch.equal(found, whole)
        if any("bias" in name for mlp in mlps for name, _ in mlp.named_parameters()):
            continue  # what is projected down keeps its bias; the hook below does not

        def nothing(_: Any, __: Any, output: Any) -> Any:
            zero = torch.zeros_like(output[0] if isinstance(output, tuple) else output)
            return (zero, *output[1:]) if isinstance(output, tuple) else zero

        handles = [mlp.register_forward_hook(nothing) for mlp in mlps]
        torch.testing.assert_close(found, logits(model), atol=1e-6, rtol=1e-6)
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_nothing_is_left_of_a_mask_when_it_fails(model_type: str) -> None:
    model, binding = bound_model(model_type)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    original = logits(model)
    removal = choose_removal(binding, random_scores(binding), (LAYERS, GROUPS, NEURONS), 0.5)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.get_output_embeddings().register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        masked_logits(model, mask_removal(model, binding, removal))
    handle.remove()
    assert torch.equal(logits(model), original)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_columns_are_put_back_when_an_expert_cannot_be_masked() -> None:
    weights = torch.rand(2, 3, 4)
    before = weights.clone()
    with zero_columns(weights, 1, [torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64)]):
        assert not weights[0, :, [0, 2]].any()
        assert torch.equal(weights[0, :, [1, 3]], before[0, :, [1, 3]])
        assert torch.equal(weights[1], before[1])
    assert torch.equal(weights, before)
    positions = [torch.tensor([0]), torch.tensor([9])]
    with pytest.raises(RuntimeError, match="out of DATA bounds"), zero_columns(weights, 1, positions):
        pass
    assert torch.equal(weights, before)
