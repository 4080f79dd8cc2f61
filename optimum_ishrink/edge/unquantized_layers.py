"""Which layers stay in 16 bits: those that are named, and those that an analysis found sensitive."""

from __future__ import annotations

from pathlib import Path

from ..analysis.record import Analysis
from ..architectures.spec import Binding
from ..core.json_files import read_json
from ..core.progress import note
from ..errors import RequestError, SourceError
from ..report.files import ANALYSIS_FILE

DEFAULT_SHARE = 0.1
"""Share of the layers that stay when an analysis is given: a few layers carry most of the divergence."""


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """Return the layers of a list such as `0,3,29`, ascending, each once.

    Args:
        text: The list.
        count: Layers of the model.

    Raises:
        RequestError: It is no such list, or the model has no such layer.
    """
    try:
        layers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise RequestError(f"layers must be whole numbers such as 0,3,29, not {text!r}") from None
    if layers[0] < 0 or layers[-1] >= count:
        wrong = layers[0] if layers[0] < 0 else layers[-1]
        raise RequestError(f"the model has no layer {wrong}; its layers are 0 to {count - 1}")
    return tuple(layers)


def read_analysis(path: Path, binding: Binding) -> Analysis:
    """Read an analysis and check that it is about such a model.

    Widths may differ: an analysis of the base still says which layers of a narrower model matter. Layers may not.

    Args:
        path: Output folder of `analyze`, or its `analysis.json`.
        binding: The model that is quantised.

    Raises:
        SourceError: There is no whole analysis.
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
            f"{binding.num_parameters():,}; which layers matter is taken from it all the same"
        )
    return analysis


def sensitive_layers(analysis: Analysis, share: float) -> tuple[int, ...]:
    """Return the layers whose absence an analysis found to hurt most, ascending; at least one.

    Args:
        analysis: The analysis.
        share: Share of the layers, between 0 and 1.

    Raises:
        RequestError: The share is none.
    """
    if not 0 < share < 1:
        raise RequestError(f"--keep-share must be above 0 and below 1, not {share:g}")
    worst = sorted(analysis.sensitivity, key=lambda layer: (-layer.block.value, layer.layer))
    return tuple(sorted(layer.layer for layer in worst[: max(1, round(share * len(worst)))]))


def kept_layers(binding: Binding, named: str | None, analysis: str | None, share: float | None) -> tuple[int, ...]:
    """Return the layers that stay in 16 bits, ascending.

    Args:
        binding: The model.
        named: Layers by index, such as `0,29`.
        analysis: An analysis, whose most sensitive layers stay as well.
        share: Share of the layers that it is asked for; a tenth by default.

    Raises:
        RequestError: A layer does not exist, or the analysis does not fit.
        SourceError: The analysis cannot be read.
    """
    found = set(parse_layers(named, binding.sizes["layers"])) if named is not None else set()
    if analysis is not None:
        wanted = DEFAULT_SHARE if share is None else share
        found |= set(sensitive_layers(read_analysis(Path(analysis), binding), wanted))
    elif share is not None:
        raise RequestError("--keep-share says how many layers of an analysis stay; name it with --analysis DIR")
    return tuple(sorted(found))
