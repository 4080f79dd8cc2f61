"""Which layers stay in 16 bits: those that are named, and those that an analysis found sensitive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..architectures.binding import Binding
from ..core.json_files import read_json
from ..core.progress import note
from ..errors import RequestError, SourceError
from ..report.analysis import Analysis
from ..report.files import ANALYSIS_FILE


def check_layers(layers: Sequence[int], count: int) -> None:
    """Check that a model has the named layers.

    Args:
        layers: Indices of layers, from 0.
        count: Number of layers in the model.

    Raises:
        RequestError: It lacks one.
    """
    for layer in layers:
        if not 0 <= layer < count:
            raise RequestError(f"the model has no layer {layer}; its layers are 0 to {count - 1}")


def read_analysis(path: Path, binding: Binding) -> Analysis:
    """Read an analysis and check that it fits the model.

    Widths may differ: an analysis of the base also shows which layers of a narrower model matter. The number of layers
    may not.

    Args:
        path: Output folder of `analyze`, or its `analysis.json`.
        binding: The model that is quantised.

    Raises:
        SourceError: There is no analysis, or it is incomplete.
        RequestError: It is of a model with other layers.
    """
    file = path if path.is_file() else path / ANALYSIS_FILE
    try:
        analysis = Analysis.from_json(read_json(file))
    except SourceError as error:
        reason = str(error)
        raise SourceError(reason if str(file) in reason else f"{file}: {reason}") from None
    layers = binding.sizes["layers"]
    if (analysis.model_type, len(analysis.sensitivity)) != (binding.description.model_type, layers):
        raise RequestError(
            f"{file} is about {analysis.model}, a {analysis.model_type} of {len(analysis.sensitivity)} layers; the "
            f"model is a {binding.description.model_type} of {layers}: analyze this one, or name --keep-layers"
        )
    if analysis.num_parameters != binding.num_parameters():
        note(
            f"{file} is about a model of {analysis.num_parameters:,} parameters, this one has "
            f"{binding.num_parameters():,}; its most sensitive layers are used anyway"
        )
    return analysis


def sensitive_layers(analysis: Analysis, share: float) -> tuple[int, ...]:
    """Return the layers whose removal costs the most in an analysis, ascending; at least one.

    Args:
        analysis: The analysis.
        share: Share of the layers, above 0 and below 1.
    """
    worst = sorted(analysis.sensitivity, key=lambda layer: (-layer.block.value, layer.layer))
    return tuple(sorted(layer.layer for layer in worst[: max(1, round(share * len(worst)))]))


def layers_in_16_bits(
    binding: Binding, named: Sequence[int], analysis: Path | None, analysis_share: float
) -> tuple[int, ...]:
    """Return the layers that stay in 16 bits, ascending.

    Args:
        binding: The model.
        named: Indices of layers, from 0.
        analysis: Output folder of `analyze`, whose most sensitive layers stay as well; None for none.
        analysis_share: Share of the layers that stay because of the analysis, above 0 and below 1.

    Raises:
        RequestError: A layer does not exist, or the analysis does not fit.
        SourceError: The analysis cannot be read.
    """
    check_layers(named, binding.sizes["layers"])
    found = set(named)
    if analysis is not None:
        found |= set(sensitive_layers(read_analysis(analysis, binding), analysis_share))
    return tuple(sorted(found))
