"""Costs of a model that do not depend on the machine: bytes of KV cache, floating-point operations, parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..core.device import dtype_name
from ..core.key_value_cache import keeps_cache, step_reader
from ..report.measurement import Measurement

_SHORT, _LONG = 1, 2
"""Tokens in the two prompts whose caches are compared: below any sliding window, where every layer still grows."""


def measure_footprint(model: Any, prompt_length: int) -> tuple[Measurement, ...]:
    """Measure the costs that need no timing.

    Args:
        model: A loaded model.
        prompt_length: Tokens that the floating-point operations are counted on; those of attention grow with it.
    """
    dtype = dtype_name(model.dtype)
    return (
        Measurement(
            "parameters_without_embeddings", "checkpoint", float(parameters_without_embeddings(model)), None, 1
        ),
        Measurement(
            "kv_cache_bytes_per_token", f"{dtype} cache", kv_cache_bytes_per_token(model), None, 1, {"dtype": dtype}
        ),
        Measurement(
            "flops_per_token",
            f"prompt {prompt_length}",
            flops_per_token(model, prompt_length),
            None,
            1,
            {"prompt_length": prompt_length, "counter": "torch.utils.flop_counter"},
        ),
    )


def parameters_without_embeddings(model: Any) -> int:
    """Return the number of parameters outside of the embeddings and the output head.

    Args:
        model: A loaded model. Tied weights count once; tied to an embedding, not at all.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            embeddings |= {id(parameter) for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)


@torch.inference_mode()
def kv_cache_bytes_per_token(model: Any) -> float:
    """Return by how many bytes the cache of one sequence grows with a token.

    It is measured on the caches of two forward passes, so it holds for any kind of attention. A state that does not
    grow, such as that of recurrent layers, is not included. Where the class keeps no cache it is 0.

    Args:
        model: A loaded model; the cache is in its dtype.
    """
    if not keeps_cache(model):
        return 0.0
    read, sizes = step_reader(model), []
    for length in (_SHORT, _LONG):
        _, cache = read(_tokens(model, length), logits_to_keep=1)
        sizes.append(_nbytes(cache, set(), set()))
    return (sizes[1] - sizes[0]) / (_LONG - _SHORT)


def _nbytes(value: Any, objects: set[int], storages: set[int]) -> int:
    """Return the bytes of all tensors within an object, each storage once."""
    if isinstance(value, torch.Tensor):
        if value.untyped_storage().data_ptr() in storages:
            return 0
        storages.add(value.untyped_storage().data_ptr())
        return value.numel() * value.element_size()
    if id(value) in objects:
        return 0
    objects.add(id(value))
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    elif type(value).__module__.startswith("transformers."):
        parts = list(vars(value).values())
    else:
        return 0
    return sum(_nbytes(part, objects, storages) for part in parts)


@torch.inference_mode()
def flops_per_token(model: Any, length: int) -> float:
    """Return floating-point operations of a forward pass per token, as torch's own counter counts them.

    It counts matrix products, two operations for a multiplication with its addition. Attention runs as plain matrix
    products here, because the counter does not know the fused CPU kernels.

    Args:
        model: A loaded model.
        length: Tokens in the prompt; the logits of each are computed.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(_tokens(model, length), use_cache=False)
    return float(counter.get_total_flops()) / length


def _tokens(model: Any, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (1, length), generator=generator).to(model.device)
