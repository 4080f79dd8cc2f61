"""A model class at a size of our choice: what it stores, asked on the meta device, for one set of config values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from ..architectures.model_class import json_copy, stored_state
from ..errors import ArchitectureError, SourceError

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor to its shape."""

_NOT_VALUES = (
    *("model_type", "transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype"),
    *("quantization_config", "_attn_implementation", "attn_implementation", "experts_implementation"),
)
"""Entries of config.json that say nothing about the shape of a model."""


@dataclass(frozen=True)
class Built:
    """What a class stores for one set of config values.

    Args:
        stored: Every tensor of a checkpoint, without tied ones.
        memory: Every parameter of the loaded model that has another name or shape than on disk.
    """

    stored: Shapes
    memory: Shapes


def check_class(raw: Mapping[str, Any]) -> str:
    """Check that transformers holds a class that a description can be drafted for, and return its `model_type`.

    Args:
        raw: The contents of config.json.

    Raises:
        SourceError: It is no config of a model.
        ArchitectureError: It needs remote code, transformers lacks it, or it is not one causal decoder; the message
            says what to do.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise SourceError("config.json has no model_type; it is not the config of a transformers model")
    if model_type not in CONFIG_MAPPING:
        if "auto_map" in raw:
            raise ArchitectureError(
                f"{model_type!r} needs remote code, which is never run; use a checkpoint that was converted for a "
                "class of transformers, or register the class with AutoConfig and AutoModelForCausalLM and draft from "
                "Python"
            )
        raise ArchitectureError(
            f"this transformers has no class for {model_type!r}; upgrade transformers, or correct model_type in "
            "config.json"
        )
    parts = sorted(key for key, value in raw.items() if key.endswith("_config") and isinstance(value, dict))
    if {"text_config", "vision_config", "audio_config"} & set(parts):
        raise ArchitectureError(
            f"{model_type!r} combines several models ({', '.join(parts)}); save the text decoder's part as the "
            "config.json of a folder of its own, and describe that"
        )
    if raw.get("is_encoder_decoder") or getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False) is True:
        raise ArchitectureError(
            f"{model_type!r} is an encoder with a decoder; only causal decoders can be described, which are one stack "
            "of layers"
        )
    if CONFIG_MAPPING[model_type] not in AutoModelForCausalLM._model_mapping:
        raise ArchitectureError(
            f"{model_type!r} has no causal language model in transformers; only classes of AutoModelForCausalLM can "
            "be described"
        )
    return model_type


def config_values(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return every value of a config with the defaults of its class, as a JSON object that makes the same config.

    Args:
        raw: The contents of config.json.

    Raises:
        SourceError: The config class refuses it.
    """
    config = make_config({key: value for key, value in raw.items() if key not in _NOT_VALUES}, raw["model_type"])
    # Of a key that a class has under two names, the file's: it is the one that a cut has to write.
    spelled = {name: alias for alias, name in config.attribute_map.items() if alias in raw and name not in raw}
    return {spelled.get(key, key): value for key, value in config.to_dict().items() if key not in _NOT_VALUES}


def make_config(values: Mapping[str, Any], model_type: str) -> Any:
    """Return the `PreTrainedConfig` of some values.

    Raises:
        SourceError: The config class refuses them.
    """
    try:
        # A copy: config classes fill in what is missing, in the very dicts that they are given.
        return AutoConfig.for_model(model_type, **json_copy(dict(values)))
    except Exception as error:  # strict config classes raise many types of errors, all about the values
        raise SourceError(f"the {model_type} config class refuses this: {' '.join(str(error).split())}") from None


def build(values: Mapping[str, Any], model_type: str) -> Built:
    """Return what the class stores for some config values. Nothing is computed, and no memory is taken.

    Raises:
        SourceError: The class cannot be built with them.
    """
    config = make_config(values, model_type)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        stored = {name: tuple(tensor.shape) for name, tensor in stored_state(model).items()}
    except Exception as error:  # whatever a modelling file does with values that its authors did not think of
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise SourceError(f"the {model_type} class cannot be built with these values: {reason}") from None
    memory = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tied = set(model.all_tied_weights_keys)
    other = {name: shape for name, shape in memory.items() if stored.get(name) != shape and name not in tied}
    return Built(stored, other)


def random_model(values: Mapping[str, Any], model_type: str, seed: int = 0) -> Any:
    """Return a random model in float32 whose every tensor, norms and biases included, is far from its initial value.

    Args:
        values: Config values.
        model_type: The architecture.
        seed: Seed of the weights.

    Raises:
        SourceError: The class cannot be built, or it cannot compute with these values.
    """
    config = make_config(values, model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                for name, buffer in model.named_buffers():
                    if "bias" in name and buffer.is_floating_point() and name in model.state_dict():
                        buffer.add_(torch.rand_like(buffer) * 0.2)  # corrections of a router's choice
            logits = compute(model, token_ids(model))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SourceError(f"the {model_type} class cannot compute with these values: {reason}") from None
    if not bool(logits.isfinite().all()):
        raise SourceError(f"the {model_type} class gives NaN or infinite values with random weights")
    return model


def token_ids(model: Any, length: int = 9) -> torch.Tensor:
    """Return two random texts of a model's vocabulary, int64, shape (2, length)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, int(model.get_input_embeddings().weight.shape[0]), (2, length), generator=generator)


def compute(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of some tokens, float32, shape (texts, tokens, rows)."""
    with torch.no_grad():
        logits: torch.Tensor = model(ids, use_cache=False).logits.float()
    return logits
