"""What a config's model class expects, asked of transformers without weights in memory."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import revert_weight_conversion

from ..errors import ArchitectureError, SourceError
from .binding import Binding, bind
from .description import describe, descriptions


def parse_config(raw: Mapping[str, Any]) -> Any:
    """Turn the contents of a config.json into its `PreTrainedConfig`.

    Args:
        raw: The JSON object.

    Raises:
        ArchitectureError: The architecture has no description, or it needs remote code.
        SourceError: The model is quantised, or its config class refuses the values.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise SourceError("config.json has no model_type; it is not the config of a transformers model")
    if model_type not in CONFIG_MAPPING and "auto_map" in raw:
        raise ArchitectureError(
            f"{model_type!r} needs remote code, which is never run; "
            f"supported architectures: {', '.join(descriptions())}"
        )
    parts = sorted(key for key, value in raw.items() if key.endswith("_config") and isinstance(value, dict))
    if {"text_config", "vision_config", "audio_config"} & set(parts):
        raise ArchitectureError(
            f"{model_type!r} combines several models ({', '.join(parts)}), of which only one would be pruned; "
            "use a checkpoint of its text decoder alone"
        )
    describe(model_type)
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "quantised")
        raise SourceError(f"the model is already quantised ({method}); prune the original, then quantise the result")
    # A copy: config classes fill in what is missing, in the very dicts that they are given, such as `rope_scaling`.
    values = {key: deepcopy(value) for key, value in raw.items() if key not in ("model_type", "transformers_version")}
    try:
        return AutoConfig.for_model(model_type, **values)
    except Exception as error:  # strict config classes raise many types of errors, all about the values
        reason = " ".join(str(error).split())
        raise SourceError(f"the {model_type} config class refuses this config.json: {reason}") from None


def expected_tensors(config: Any) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor in a checkpoint of this config, without tied weights.

    The model is built on the meta device, so this takes no memory.

    Raises:
        ArchitectureError: The config gives layers sizes of their own, and the class reads one for all.
        SourceError: The id of the padding token is outside the embedding.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except RuntimeError as error:
        if not getattr(config, "is_heterogeneous", False):
            raise
        raise ArchitectureError(
            f"config.json gives single layers sizes of their own (per_layer_config), but the {config.model_type} "
            f"class reads one size for all layers: {' '.join(str(error).split())[:120]}; remove the entry, and give "
            "every layer the same sizes"
        ) from None
    except AssertionError as error:
        pad, rows = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", 0)
        if not isinstance(pad, int) or -rows <= pad < rows:
            raise
        raise SourceError(
            f"config.json names pad_token_id={pad}, but the model has {rows} embeddings, ids 0 to {rows - 1}; "
            f"set it to one of these, or to null ({error})"
        ) from None
    return {name: tuple(tensor.shape) for name, tensor in stored_state(model).items()}


def stored_state(model: Any) -> dict[str, torch.Tensor]:
    """Return a loaded model's tensors by their names and in their layout on disk, without tied weights."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    stored: dict[str, torch.Tensor] = revert_weight_conversion(model, state)
    return stored


def bind_config(raw: Mapping[str, Any]) -> tuple[Any, Binding]:
    """Parse a config and bind its architecture's description to it.

    Args:
        raw: The contents of config.json.

    Returns:
        The `PreTrainedConfig` and the binding.

    Raises:
        ArchitectureError: The architecture is unknown, or its description does not account for every parameter.
        SourceError: The config cannot be used.
    """
    config = parse_config(raw)
    return config, bind(describe(config.model_type), config, expected_tensors(config))
