"""Which parameters are trained: a low-rank adapter, all, or a chosen set."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers.pytorch_utils import Conv1D

from ..architectures.composite import is_composite
from ..errors import RequestError, unknown_name
from .options import RecoveryOptions
from .trained_parts import FULL


def train_parameters(model: Any, parts: Sequence[str], layers: Sequence[str]) -> None:
    """Let parameters of a model be trained, in float32, and freeze all others.

    Steps of a small learning rate are lost in bfloat16, which has eight bits: so what is trained is held in float32,
    at four bytes a parameter, with two moments of four bytes each beside it.

    Args:
        model: The causal language model; it is changed.
        parts: What `parse_trained` returned, other than `lora`.
        layers: Names of the modules of its layers, in order.

    Raises:
        RequestError: There are fewer layers than were requested.
    """
    model.requires_grad_(False)
    for part in parts:
        if part == FULL:
            for module in _text_modules(model):
                module.requires_grad_(True)
        elif part == "head":
            model.get_output_embeddings().requires_grad_(True)
        elif part == "embeddings":
            model.get_input_embeddings().requires_grad_(True)
            model.get_output_embeddings().requires_grad_(True)
        elif part == "norms":
            for module in (inner for each in _text_modules(model) for inner in each.modules()):
                if "norm" in type(module).__name__.lower():
                    module.requires_grad_(True)
        else:
            count = int(part.partition(":")[2])
            if count > len(layers):
                raise RequestError(f"{part} layers were requested for training; the model has {len(layers)}")
            for name in layers[-count:]:
                model.get_submodule(name).requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _text_modules(model: Any) -> list[Any]:
    """Return the modules that hold the text decoder and its head: of a plain decoder, the model."""
    if not is_composite(model.config):
        return [model]
    return [model.get_decoder(), model.get_output_embeddings()]


def _outside_text(model: Any) -> str | None:
    """Return a pattern for the names of modules outside the text decoder; None where there are none."""
    if not is_composite(model.config):
        return None
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    return rf"(?!{re.escape(decoder)}\.).*"


def add_lora(model: Any, options: RecoveryOptions, *, start: Mapping[str, torch.Tensor] | None = None) -> Any:
    """Put a float32 LoRA adapter into a model whose own parameters are frozen.

    Args:
        model: The causal language model; it is changed.
        options: The adapter's shape, and the seed of its initial values.
        start: What the adapter adds to a weight at the start, by the weight's name and in its layout, of at most
            the adapter's rank; nothing where it is not named.

    Returns:
        PEFT's model around the model.

    Raises:
        RequestError: The model has no module of a target's name.
    """
    outside = _outside_text(model)
    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if _is_linear(module) and not (outside and re.fullmatch(outside, name))
        }
    )
    for target in options.recovery_lora_targets:
        if target not in linear:
            raise RequestError(unknown_name("LoRA target", target, linear))
    config = LoraConfig(
        r=options.recovery_lora_rank,
        lora_alpha=options.recovery_lora_alpha,
        lora_dropout=options.recovery_lora_dropout,
        target_modules=list(options.recovery_lora_targets) or "all-linear",
        exclude_modules=outside,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on which of the two layouts of a linear layer each module has
        torch.manual_seed(options.seed)
        adapted = get_peft_model(model, config)
    for name, delta in (start or {}).items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        if isinstance(layer, LoraLayer):
            _set_start(layer, delta.T if layer.fan_in_fan_out else delta, options)
    return adapted


@torch.no_grad()
def _set_start(layer: Any, delta: torch.Tensor, options: RecoveryOptions) -> None:
    """Split a map of low rank between the adapter's two factors, evenly, so that both learn at one rate."""
    left, size, right = torch.linalg.svd(delta.double(), full_matrices=False)
    rank = min(options.recovery_lora_rank, len(size))
    root = (size[:rank] * options.recovery_lora_rank / options.recovery_lora_alpha).sqrt()
    # Beyond the map's own rank the second factor is zero: those directions start as in any adapter.
    second = torch.zeros_like(layer.lora_B["default"].weight)
    second[:, :rank] = (left[:, :rank] * root).to(second)
    first = layer.lora_A["default"].weight
    used = size[:rank] > size[0] * 1e-9
    first[:rank][used] = (root[:, None] * right[:rank])[used].to(first)
    layer.lora_B["default"].weight.copy_(second)


def keep_autocast_inputs(model: Any) -> None:
    """Let adapters take their inputs as they come: under autocast, PEFT's own cast to float32 would only be undone."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def _is_linear(module: Any) -> bool:
    return isinstance(module, (torch.nn.Linear, Conv1D))


def learning_rate_shares(model: torch.nn.Module, layers: Sequence[str], decay: float) -> dict[str, float]:
    """Return the share of the learning rate that each parameter is trained with, less the deeper it is below the head.

    The last layer and what follows it have 1, every layer before it `decay` times that of the next, and embeddings
    `decay` times that of the first layer.

    Source: ULMFiT's discriminative fine-tuning, arXiv:1801.06146, section 3.2, with the factor of each layer.

    Args:
        model: The model with what is trained; what is around it can have made its names longer.
        layers: Names of the modules of the layers, in order.
        decay: The factor from one layer to the one before it.
    """
    shares = {}
    for name in trained_parameters(model):
        place = next((place for place, layer in enumerate(layers) if f".{layer}." in f".{name}"), None)
        if place is None:
            embeds = isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.Embedding)
            place = -1 if embeds else len(layers) - 1
        shares[name] = decay ** (len(layers) - 1 - place)
    return shares


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
