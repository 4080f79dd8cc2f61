"""Which parameters are trained: a low-rank adapter, all, or a chosen set."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from transformers.pytorch_utils import Conv1D

from ..errors import RequestError, unknown_name

LORA, FULL = "lora", "full"
PARTS = ("norms", "head", "last:N")
STARTS = ("zero", "closed-form")


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapter.

    Args:
        rank: Rank of each map.
        alpha: The maps are scaled by `alpha / rank`.
        dropout: Share of the adapter's inputs that are left out in training.
        targets: Names of linear modules, such as `q_proj`; all linear modules of the layers when empty.
    """

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]


def parse_trained(text: str) -> tuple[str, ...]:
    """Parse what is trained.

    Args:
        text: `lora`, `full`, or parts joined by `+`: `norms`, `head`, `last:N`.

    Raises:
        RequestError: A part is unknown, or `lora` or `full` stands beside another.
    """
    parts = tuple(part.strip() for part in str(text).split("+"))
    for part in parts:
        kind, colon, number = part.partition(":")
        if part in (LORA, FULL) and len(parts) > 1:
            raise RequestError(f"{part!r} is trained alone, not in {text!r}; join only {', '.join(PARTS)}")
        if part in (LORA, FULL, "norms", "head"):
            continue
        if kind != "last":
            raise RequestError(unknown_name("set of parameters", part, (LORA, FULL, *PARTS)))
        if not colon or not number.isdigit() or int(number) < 1:
            raise RequestError(f"the last layers are named with their number, such as last:2, not {part!r}")
    return parts


def train_parameters(model: Any, parts: Sequence[str], layers: Sequence[str]) -> None:
    """Let parameters of a model be trained, in float32, and freeze all others.

    Steps of a small learning rate are lost in bfloat16, which has eight bits: so what is trained is kept in float32,
    at four bytes a parameter, with two moments of four bytes each beside it.

    Args:
        model: The causal language model; it is changed.
        parts: What `parse_trained` returned, other than `lora`.
        layers: Names of the modules of its layers, in order.

    Raises:
        RequestError: There are fewer layers than were asked for.
    """
    model.requires_grad_(False)
    for part in parts:
        if part == FULL:
            model.requires_grad_(True)
        elif part == "head":
            model.get_output_embeddings().requires_grad_(True)
        elif part == "norms":
            for module in model.modules():
                if "norm" in type(module).__name__.lower():
                    module.requires_grad_(True)
        else:
            count = int(part.partition(":")[2])
            if count > len(layers):
                raise RequestError(f"{part} layers were asked to be trained; the model has {len(layers)}")
            for name in layers[-count:]:
                model.get_submodule(name).requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def add_lora(model: Any, settings: LoraSettings, *, seed: int, start: Mapping[str, torch.Tensor] | None = None) -> Any:
    """Put a float32 LoRA adapter into a model whose own parameters are frozen.

    Args:
        model: The causal language model; it is changed.
        settings: The adapter's shape.
        seed: Seed of its initial values.
        start: What the adapter shall add to a weight at the start, by the weight's name and in its layout, of at most
            the adapter's rank; nothing where it is not named.

    Returns:
        PEFT's model around the model.

    Raises:
        RequestError: The model has no module of a target's name.
    """
    linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)})
    for target in settings.targets:
        if target not in linear:
            raise RequestError(unknown_name("LoRA target", target, linear))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or "all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on which of the two layouts of a linear layer each module has
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    for name, delta in (start or {}).items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        if isinstance(layer, LoraLayer):
            _set_start(layer, delta.T if layer.fan_in_fan_out else delta, settings)
    return adapted


@torch.no_grad()
def _set_start(layer: Any, delta: torch.Tensor, settings: LoraSettings) -> None:
    """Split a map of low rank between the adapter's two factors, evenly, so that both learn at one rate."""
    left, size, right = torch.linalg.svd(delta.double(), full_matrices=False)
    rank = min(settings.rank, len(size))
    root = (size[:rank] * settings.rank / settings.alpha).sqrt()
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


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
