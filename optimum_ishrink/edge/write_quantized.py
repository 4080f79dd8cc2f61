"""From a checkpoint folder to one with quantised linear layers, through the library that reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from ..checkpoint.generation import drop_idle_flags
from ..checkpoint.older_keys import add_older_keys
from ..checkpoint.source import Source
from ..checkpoint.writing import carry_files, drop_code
from ..core.progress import progress_bar
from ..errors import SourceError, VerificationError, one_line
from .linear_layers import LinearLayer
from .torch_quantizations import TORCHAO, TorchQuantization

_SUFFIX = {"torchao": "._weight_qdata", "compressed-tensors": ".weight_packed"}
"""The libraries' names for the integers of a linear layer."""

_CLIPS = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)
"""Clipping ranges that are tried besides the full one, as shares of a group's largest weight."""


def half_dtype(source: Source) -> torch.dtype:
    """Return the 16-bit dtype of what is not quantised: float16 if the checkpoint is in it, else bfloat16."""
    return torch.float16 if {info.dtype for info in source.tensors.values()} == {"F16"} else torch.bfloat16


def write_quantized(
    source: Source,
    quantization: TorchQuantization,
    group_size: int | None,
    linears: Sequence[LinearLayer],
    quantized: Sequence[LinearLayer],
    folder: Path,
) -> None:
    """Write a checkpoint in which some linear layers are quantised; everything else is in 16 bits.

    Args:
        source: The checkpoint.
        quantization: How they are quantised.
        group_size: Weights that share a scale; None for whole rows.
        linears: Every linear layer of the model.
        quantized: Those that are quantised.
        folder: An existing, empty folder.

    Raises:
        SourceError: The library refuses the model; the message has its reason.
        VerificationError: The library did not quantise the requested linear layers.
    """
    wanted = {linear.name for linear in quantized}
    ignored = [linear.name for linear in linears if linear.name not in wanted]
    dtype = half_dtype(source)
    with progress_bar(f"quantising to {quantization.name}", 1) as advance:
        try:
            with quiet():
                if quantization.library is TORCHAO:
                    _with_torchao(source.folder, quantization, dtype, ignored, folder)
                else:
                    _with_compressed_tensors(source.folder, group_size or 0, dtype, ignored, folder)
        except OSError:  # such as a full disk: `staged_folder` reports it
            raise
        except Exception as error:  # the libraries raise many types for a model that they do not support
            reason = one_line(error, 300)
            raise SourceError(f"{quantization.library.name} cannot quantise {source.name}: {reason}") from None
        advance(1)
    add_older_keys(folder)
    carry_files(source.folder, folder)
    drop_code(folder)
    for path in folder.glob("*.safetensors"):  # the library makes them readable by the user alone
        path.chmod((folder / "config.json").stat().st_mode)
    found = set(quantized_names(folder, quantization))
    if found != wanted:
        different = sorted(found ^ wanted)
        raise VerificationError(
            f"{quantization.library.name} quantised {len(found)} linear layers where {len(wanted)} were requested "
            f"(such as {different[0]}); nothing was written"
        )


def _with_torchao(
    folder: Path, quantization: TorchQuantization, dtype: torch.dtype, ignored: Sequence[str], target: Path
) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    # Compiler settings are the reader's choice.
    kind = Int8WeightOnlyConfig if quantization.name == "int8" else Int8DynamicActivationInt8WeightConfig
    how = TorchAoConfig(kind(set_inductor_config=False), modules_to_not_convert=list(ignored))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=how)
    drop_idle_flags(model.generation_config)
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

    # Symmetric: packed zero points are stored in a different shape from what transformers expects.
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
    drop_idle_flags(model.generation_config)
    model.save_pretrained(target)
    compressor.update_config(str(target))


@torch.no_grad()
def int4_scales(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return the scale of every group of weights: of a few candidates, the one that rounds them with least error.

    Clipping the largest weight of a group a little gives finer steps to all others. The clipping range with the least
    squared error is searched as in the tools of GPTQ and AWQ, without any data.

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
        # In the dtype of the file, so that the error is the one that the reader gets.
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


def quantized_names(folder: Path, quantization: TorchQuantization) -> Iterator[str]:
    """Yield the names of the modules whose weights a written folder holds as integers."""
    suffix = _SUFFIX[quantization.library.name]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (the handle is not a mapping)
                if name.endswith(suffix):
                    yield name.removesuffix(suffix)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the libraries' progress bars and messages; errors are raised."""
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def read_quantized(folder: Path, dtype: torch.dtype) -> Any:
    """Load a written folder with plain `AutoModelForCausalLM`, as its readers do, and run it on one token.

    On the first run compressed-tensors unpacks all weights and draws a progress bar, which is hidden here.

    Args:
        folder: The folder.
        dtype: The dtype that its config must name.

    Raises:
        VerificationError: It does not load cleanly, or does not run.
    """
    try:
        with quiet(), torch.inference_mode():
            model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
            model.eval()(torch.zeros(1, 1, dtype=torch.int64))
    except Exception as error:  # any error means that the folder is wrong
        reason = one_line(error, 300)
        raise VerificationError(f"transformers cannot run the export ({reason}); nothing was written") from None
    misfits = sorted(
        str(name) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]
    )
    if misfits or model.dtype != dtype:
        problem = f"{len(misfits)} tensors do not fit, such as {misfits[0]}" if misfits else f"it is in {model.dtype}"
        raise VerificationError(f"transformers does not load the export cleanly: {problem}; nothing was written")
    return model
