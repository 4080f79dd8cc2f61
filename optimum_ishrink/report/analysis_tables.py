"""The tables of a zero-out analysis, for the terminal."""

from __future__ import annotations

from ..core.table import Row
from .analysis import Analysis
from .tables import format_measurement

_UNITS = {"num_hidden_layers": "layers", "num_key_value_heads": "KV groups", "intermediate_size": "neurons"}


def level_rows(analysis: Analysis) -> list[Row]:
    """Return (kind, sparsity, units set to zero, share of parameters, figures ...) for every level of every kind."""
    rows: list[Row] = []
    columns = _columns(analysis)
    for level in analysis.levels:
        units = ", ".join(f"{count:,} {_UNITS[key]}" for key, count in level.removed_units.items())
        known = {(found.metric, found.dataset): format_measurement(found) for found in level.quality}
        figures = [known.get(column, "too large") for column in columns]
        rows.append(
            (level.kind, f"{level.sparsity * 100:g} %", units or "none", f"{level.removed_share:.2%}", *figures)
        )
    return rows


def _columns(analysis: Analysis) -> list[tuple[str, str]]:
    """Return metric and data set of each figure; a level has no perplexity where it is too large for a number."""
    fullest = max(analysis.levels, key=lambda level: len(level.quality))
    return [(found.metric, found.dataset) for found in fullest.quality]


def level_header(analysis: Analysis) -> Row:
    """Return the header of `level_rows`."""
    names = {
        "perplexity": "perplexity",
        "kl_divergence": "KL divergence, nats/token",
        "top1_agreement": "top-1 agreement",
    }
    figures = [names.get(metric, f"{dataset} {metric}") for metric, dataset in _columns(analysis)]
    return ("kind", "sparsity", "set to zero", "parameters", *figures)


def sensitivity_rows(analysis: Analysis) -> list[Row]:
    """Return (layer, without attention, without MLP, skipped) for every layer: KL divergences."""
    return [
        (str(layer.layer), *(format_measurement(part) for part in (layer.attention, layer.mlp, layer.block)))
        for layer in analysis.sensitivity
    ]


SENSITIVITY_HEADER: Row = ("layer", "KL without its attention", "KL without its MLP", "KL with the layer skipped")
