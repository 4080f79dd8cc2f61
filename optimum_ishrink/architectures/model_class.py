"""What a config's model class expects, asked of transformers without weights in memory."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)
from transformers.core_model_loading import revert_weight_conversion

from ..errors import ArchitectureError, SourceError, one_line
from .binding import Binding, bind
from .composite import composite_of, composites, is_composite, text_config
from .description import Description, describe, descriptions


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
            f"supported architectures: {', '.join(sorted({*descriptions(), *composites()}))}"
        )
    if composite_of(raw) is None:
        describe(model_type)
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "quantised")
        raise SourceError(f"the model is already quantised ({method}); prune the original, then quantise the result")
    # A copy: config classes fill in what is missing, in the very dicts that they are given, such as `rope_scaling`.
    values = {key: json_copy(value) for key, value in raw.items() if key not in ("model_type", "transformers_version")}
    try:
        config = AutoConfig.for_model(model_type, **values)
    except Exception as error:  # strict config classes raise many types of errors, all about the values
        reason = " ".join(str(error).split())
        raise SourceError(f"the {model_type} config class refuses this config.json: {reason}") from None
    _describe(config)
    return config


def json_copy(value: Any) -> Any:
    """Return a copy of a JSON value, where infinity, which JSON lacks, is a float again.

    Args:
        value: The value, as config.json has it.
    """
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: json_copy(item) for key, item in value.items()}
    return [json_copy(item) for item in value] if isinstance(value, list) else deepcopy(value)


def _describe(config: Any) -> Description:
    """Return the description of a model, or of the decoder in it."""
    if not is_composite(config):
        return describe(config.model_type)
    return composites()[config.model_type].describe_text(text_config(config).model_type)


def auto_class(model_type: str) -> Any:
    """Return the auto class that opens the whole of a model.

    Some models of several parts are mapped as causal language models, too, and then opened without their other parts.

    Args:
        model_type: That of its config.
    """
    return AutoModelForImageTextToText if model_type in composites() else AutoModelForCausalLM


def model_class(config: Any) -> Any:
    """Return the class of a config's model; None where the config's type has none.

    Args:
        config: The `PreTrainedConfig`.
    """
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if is_composite(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    return mapping.get(type(config), None)


def meta_model(config: Any) -> Any:
    """Build the model of a config on the meta device, which takes no memory.

    Args:
        config: The `PreTrainedConfig`.

    Raises:
        ArchitectureError: The config gives layers sizes of their own, and the class reads one for all.
        SourceError: The id of the padding token is outside the embedding, or the class refuses the values.
    """
    try:
        with torch.device("meta"):
            return auto_class(config.model_type).from_config(config)
    except RuntimeError as error:
        if not getattr(config, "is_heterogeneous", False):
            raise
        raise ArchitectureError(
            f"config.json gives single layers sizes of their own (per_layer_config), but the {config.model_type} "
            f"class reads one size for all layers: {one_line(error, 120)}; remove the entry, and give "
            "every layer the same sizes"
        ) from None
    except AssertionError as error:
        text = text_config(config)
        pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", 0)
        if not isinstance(pad, int) or -rows <= pad < rows:
            raise
        raise SourceError(
            f"config.json names pad_token_id={pad}, but the model has {rows} embeddings, ids 0 to {rows - 1}; "
            f"set it to one of these, or to null ({error})"
        ) from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise SourceError(f"no {config.model_type} model can be built from this config.json: {reason}") from None


def expected_tensors(config: Any) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor in a checkpoint of this config, without tied weights.

    The model is built on the meta device, so this takes no memory. The names are those of the files; of a model of
    several parts those that the tensors have in memory, since its files have one of several conventions.

    Raises:
        SourceError: The id of the padding token is outside the embedding.
    """
    model = meta_model(config)
    return {name: tuple(tensor.shape) for name, tensor in stored_state(model).items()}


def stored_state(model: Any) -> dict[str, torch.Tensor]:
    """Return a loaded model's tensors, without tied ones: names of `expected_tensors`, and the layout on disk."""
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    if is_composite(model.config):
        return state
    stored: dict[str, torch.Tensor] = revert_weight_conversion(model, state)
    return stored


def bind_config(raw: Mapping[str, Any]) -> tuple[Any, Binding]:
    """Parse a config and bind its architecture's description to it.

    Args:
        raw: The contents of config.json.

    Returns:
        The `PreTrainedConfig` and the binding; of a model of several parts, both of its decoder, and the tensors of
        the other parts are bound as they are.

    Raises:
        ArchitectureError: The architecture is unknown, or its description does not account for every parameter.
        SourceError: The config cannot be used.
    """
    config = parse_config(raw)
    description, expected, text = _describe(config), expected_tensors(config), text_config(config)
    if not is_composite(config):
        return config, bind(description, config, expected)
    composite = composites()[config.model_type]
    binding = bind(description, text, expected, composite.carried(expected))
    count = composite.count_first_layers(config.to_dict())
    reason = composite.first_layers.reason if composite.first_layers is not None else ""
    return text, replace(binding, first_layers=count, first_reason=reason)
