"""A model in memory: unwrapped where that changes nothing, and refused where it is no plain causal language model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from ..architectures.composite import is_composite
from ..errors import SourceError

_ALLOWED = "give a Hub id, the folder of a checkpoint, or a loaded AutoModelForCausalLM with its tokenizer"


def unwrapped(model: Any) -> Any:
    """Return what `torch.compile`, `DataParallel` and `DistributedDataParallel` wrap; anything else as it is.

    The wrapped module is the very model that was wrapped, with its own weights.

    Args:
        model: Any object.
    """
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(model, torch.nn.Module) and "_orig_mod" in model._modules:  # torch.compile's wrapper
            model = model._modules["_orig_mod"]
        else:
            return model


def check_name(model: Any) -> str | Path:
    """Return a model that is given by name, and refuse whatever is no name.

    Args:
        model: Any object but a loaded model.

    Raises:
        SourceError: It is no string and no path, or a path that does not exist; the message says what to do.
    """
    if isinstance(model, Path):
        if not model.expanduser().exists():
            raise SourceError(f"the folder {model} does not exist; a Hub id is given as text, not as a Path")
        return model
    if isinstance(model, str):
        if not model.strip() or "\0" in model or "\n" in model or len(model) > 4096:
            shown = " ".join(model.split()).replace("\0", "?")[:40]
            raise SourceError(f"{shown!r} is no name of a model; {_ALLOWED}")
        return model
    raise SourceError(_refusal(model))


def _refusal(model: Any) -> str:
    """Say in one line why an object is no model, and what to give instead."""
    kind = type(model)
    known = {each.__name__ for each in kind.__mro__}
    if model is None:
        return f"there is no model: it is None; {_ALLOWED}"
    if _is_from(kind, "peft"):
        return (
            "the model has a PEFT adapter around it; merge it first, and give what that returns: "
            "model = model.merge_and_unload()"
        )
    if "Pipeline" in known and _is_from(kind, "transformers"):
        return "a pipeline is no model; give its parts: from_pretrained(pipeline.model, tokenizer=pipeline.tokenizer)"
    if known & {"ShrinkResult", "IShrinker"}:
        return f"{kind.__name__} is not a model to open; use its own methods, or give its folder"
    if known & {"PreTrainedConfig", "PretrainedConfig"}:
        return f"a config ({kind.__name__}) holds no weights; {_ALLOWED}"
    if isinstance(model, dict) and any(isinstance(value, torch.Tensor) for value in model.values()):
        return (
            "a state dict has no config, so the model that it belongs to is not known; load it into its model "
            "(model.load_state_dict(...)), and give that with its tokenizer"
        )
    if inspect.isclass(model):
        return f"{model.__name__} is a class, not a model; {_ALLOWED}"
    if isinstance(model, torch.nn.Module):
        return (
            f"{kind.__name__} is no model of transformers; give the PreTrainedModel that it wraps, with its whole "
            "weights, or save that and give the folder"
        )
    return f"an object of type {kind.__name__} is no model; {_ALLOWED}"


def _is_from(kind: type, package: str) -> bool:
    return any(each.__module__.split(".")[0] == package for each in kind.__mro__)


def check_loaded(model: PreTrainedModel, tokenizer: Any) -> None:
    """Check that a model of transformers in memory can be saved as the plain checkpoint that it is.

    Args:
        model: The model, unwrapped.
        tokenizer: What was given as its tokenizer.

    Raises:
        SourceError: It has an adapter, is quantised, is not a causal language model, or has no weights in memory; or
            its tokenizer is none. The message says what to do.
    """
    kind = type(model).__name__
    if tokenizer is None:
        raise SourceError("a loaded model needs its tokenizer: from_pretrained(model, tokenizer=tokenizer)")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise SourceError(
            f"the tokenizer of a loaded model has to be loaded, too, not of type {type(tokenizer).__name__}: "
            "tokenizer=AutoTokenizer.from_pretrained(...)"
        )
    if getattr(model, "_hf_peft_config_loaded", False) or any(_is_from(type(m), "peft") for m in model.modules()):
        raise SourceError(
            "the model has the layers of a PEFT adapter in it; merge it first: "
            "model = PeftModel.from_pretrained(base, adapter).merge_and_unload(), or unload it"
        )
    _check_quantization(model)
    if is_composite(model.config):
        raise SourceError(
            f"{kind} has other parts than its text decoder, and no files of its processor are with a model in memory; "
            "give the Hub id or the folder that it was loaded from"
        )
    expected = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model.config), None)
    classes = expected if isinstance(expected, tuple) else (expected,) if expected is not None else ()
    if classes and not isinstance(model, classes):
        raise SourceError(
            f"{kind} is not a causal language model; load it as {classes[0].__name__}, or with AutoModelForCausalLM"
        )
    names = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if names and not getattr(model, "hf_device_map", None):
        raise SourceError(
            f"{names[0]} has no weights: it is on the meta device; load the model with from_pretrained first"
        )


def _check_quantization(model: PreTrainedModel) -> None:
    config = getattr(model.config, "quantization_config", None)
    if config is None and getattr(model, "hf_quantizer", None) is not None:
        config = getattr(model.hf_quantizer, "quantization_config", None)
    method = getattr(config, "quant_method", None) if not isinstance(config, dict) else config.get("quant_method")
    method = str(getattr(method, "value", method) or getattr(model, "quantization_method", None) or "")
    marked = config is not None or getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None)
    if not marked:
        for name, parameter in model.named_parameters():
            plain = type(parameter.data) in (torch.Tensor, torch.nn.Parameter)
            if not parameter.is_floating_point() or parameter.element_size() < 2 or not plain:
                marked, method = True, f"{name} is {type(parameter.data).__name__} of {parameter.dtype}"
                break
    if marked:
        raise SourceError(
            f"the model in memory is quantised{f' ({method})' if method else ''}; load the original without "
            "quantisation, shrink that, and quantise the result; of a GGUF file give the folder and gguf_file"
        )
