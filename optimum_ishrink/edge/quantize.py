"""From a checkpoint folder to one with quantised linear layers, through the library that reads it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ..checkpoint.source import Source
from ..checkpoint.writing import carry_files
from ..core.progress import progress_bar
from ..errors import SourceError, VerificationError
from .linears import LinearLayer
from .schemes import TORCHAO, Scheme

_SUFFIX = {"torchao": "._weight_qdata", "compressed-tensors": ".weight_packed"}
"""What the libraries call the integers of a linear layer."""

_CLIPS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Shares of a group's largest weight that its scale may reach, beside the whole."""


def half_dtype(source: Source) -> torch.dtype:
    """Return the 16-bit dtype of what is not quantised: the checkpoint's own, bfloat16 where it has more bits."""
    return torch.float16 if {info.dtype for info in source.tensors.values()} == {"F16"} else torch.bfloat16


def write_quantized(
    source: Source,
    scheme: Scheme,
    group_size: int | None,
    linears: Sequence[LinearLayer],
    chosen: Sequence[LinearLayer],
    folder: Path,
) -> None:
    """Write a checkpoint whose chosen linear layers are quantised; all else is in 16 bits.

    Args:
        source: The checkpoint.
        scheme: How they are quantised.
        group_size: Weights that share a scale; None for whole rows.
        linears: Every linear layer of the model.
        chosen: Those that are quantised.
        folder: An existing, empty folder.

    Raises:
        SourceError: The library refuses the model; the message has its own words.
        VerificationError: Another set of linear layers was quantised than asked for.
    """
    wanted = {linear.name for linear in chosen}
    ignored = [linear.name for linear in linears if linear.name not in wanted]
    dtype = half_dtype(source)
    with progress_bar(f"quantising to {scheme.name}", 1) as advance:
        try:
            with quiet():
                if scheme.library is TORCHAO:
                    _with_torchao(source.folder, scheme, dtype, ignored, folder)
                else:
                    _with_compressed_tensors(source.folder, group_size or 0, dtype, ignored, folder)
        except OSError:  # a full disk is the folder's matter
            raise
        except Exception as error:  # the libraries raise many types for a model that they do not take
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise SourceError(f"{scheme.library.name} cannot quantise {source.name}: {reason}") from None
        advance(1)
    carry_files(source.folder, folder)
    for path in folder.glob("*.safetensors"):  # the library makes them private to the user
        path.chmod((folder / "config.json").stat().st_mode)
    found = set(quantized_names(folder, scheme))
    if found != wanted:
        odd = sorted(found ^ wanted)
        raise VerificationError(
            f"{scheme.library.name} quantised {len(found)} linear layers where {len(wanted)} were asked for (such as "
            f"{odd[0]}); nothing was kept"
        )


def _with_torchao(folder: Path, scheme: Scheme, dtype: torch.dtype, ignored: Sequence[str], target: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    # What the config would tell the compiler is the reader's business.
    kind = Int8WeightOnlyConfig if scheme.name == "int8" else Int8DynamicActivationInt8WeightConfig
    how = TorchAoConfig(kind(set_inductor_config=False), modules_to_not_convert=list(ignored))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=how)
    model.save_pretrained(target)


def _with_compressed_tensors(
    folder: Path, group_size: int, dtype: torch.dtype, ignored: Sequence[str], target: Path
) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    # Symmetric: zero points come back in another shape than transformers makes room for.
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=group_size, symmetric=True)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    config = QuantizationConfig(config_groups=groups, ignore=list(ignored), quantization_status="frozen")
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            module.weight_scale.data.copy_(int4_scales(module.weight.data, group_size))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(str(target))


@torch.no_grad()
def int4_scales(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return the scale of every group of weights: of a few candidates, the one that rounds them with least error.

    The largest weight of a group need not be reached: to clip it a little leaves finer steps for all others. As the
    search for the clipping range with the least squared error in GPTQ's and AWQ's tools, without any data.

    Args:
        weight: A matrix, shape (rows, columns); columns are a multiple of the group size.
        group_size: Weights that share a scale.

    Returns:
        Scales in the weight's dtype, shape (rows, columns / group size); `weight / scale` rounds to -8 ... 7.
    """
    groups = weight.float().reshape(len(weight), -1, group_size)
    largest = groups.abs().amax(-1, keepdim=True)
    tiny = torch.finfo(weight.dtype).tiny

    def scales(clip: float) -> torch.Tensor:
        # In the dtype that they are stored in, so that the error is that of the reader.
        return (largest * (clip / 7.5)).to(weight.dtype).clamp(min=tiny).float()

    def error(scale: torch.Tensor) -> torch.Tensor:
        return ((groups / scale).round().clamp(-8, 7) * scale - groups).square().sum(-1, keepdim=True)

    best = scales(1)
    least = error(best)
    for clip in _CLIPS:
        tried = scales(clip)
        found = error(tried)
        best, least = torch.where(found < least, tried, best), torch.minimum(found, least)
    return best.squeeze(-1).to(weight.dtype)


def quantized_names(folder: Path, scheme: Scheme) -> Iterator[str]:
    """Yield the names of the modules whose weights a written folder holds as integers."""
    suffix = _SUFFIX[scheme.library.name]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (the handle is no mapping)
                if name.endswith(suffix):
                    yield name.removesuffix(suffix)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own bars and lines from the terminal; their errors are raised."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def read_quantized(folder: Path, dtype: torch.dtype) -> Any:
    """Load a written folder as its reader does, plain `AutoModelForCausalLM`, and run it on one token.

    On the first run compressed-tensors unpacks all weights, which it would show among our own bars.

    Args:
        folder: The folder.
        dtype: The dtype that its config names.

    Raises:
        VerificationError: It does not load cleanly, or does not run.
    """
    try:
        with quiet(), torch.inference_mode():
            model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
            model.eval()(torch.zeros(1, 1, dtype=torch.int64))
    except Exception as error:  # whatever it is, the folder is not what it should be
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise VerificationError(f"transformers cannot run what was written ({reason}); nothing was kept") from None
    lost = sorted(str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind])
    if lost or model.dtype != dtype:
        problem = f"{len(lost)} tensors do not fit, such as {lost[0]}" if lost else f"it is in {model.dtype}"
        raise VerificationError(f"transformers does not load what was written cleanly: {problem}; nothing was kept")
    return model
