"""The tables of a zero-out analysis, for the terminal."""

from __future__ import annotations

from ..core.table import Row
from .analysis import Analysis
from .tables import format_measurement

_UNITS = {"num_hidden_layers": "layers", "num_key_value_heads": "KV groups", "intermediate_size": "neurons"}


def level_rows(analysis: Analysis) -> list[Row]:
    """Return (kind, sparsity, units set to zero, share of parameters, figures ...) for every level of every kind."""
    rows: list[Row] = []
    for level in analysis.levels:
        units = ", ".join(f"{count:,} {_UNITS[key]}" for key, count in level.removed_units.items())
        figures = [format_measurement(measurement) for measurement in level.quality]
        rows.append(
            (level.kind, f"{level.sparsity * 100:g} %", units or "none", f"{level.removed_share:.2%}", *figures)
        )
    return rows


def level_header(analysis: Analysis) -> Row:
    """Return the header of `level_rows`: the columns of figures are those of the first level."""
    names = {
        "perplexity": "perplexity",
        "kl_divergence": "KL divergence, nats/token",
        "top1_agreement": "top-1 agreement",
    }
    figures = [names.get(found.metric, f"{found.dataset} {found.metric}") for found in analysis.levels[0].quality]
    return ("kind", "sparsity", "set to zero", "parameters", *figures)


def sensitivity_rows(analysis: Analysis) -> list[Row]:
    """Return (layer, without attention, without MLP, skipped) for every layer: KL divergences."""
    return [
        (str(layer.layer), *(format_measurement(part) for part in (layer.attention, layer.mlp, layer.block)))
        for layer in analysis.sensitivity
    ]


SENSITIVITY_HEADER: Row = ("layer", "KL without its attention", "KL without its MLP", "KL with the layer skipped")
