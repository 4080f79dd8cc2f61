"""The record of a zero-out analysis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.json_codec import from_plain, to_plain
from .environment import Environment
from .files import ANALYSIS_SCHEMA, read_schema
from .measurement import Measurement


@dataclass(frozen=True)
class SparsityLevel:
    """Quality of a model with a share of its units set to zero.

    Args:
        kind: What was set to zero: `attention`, `mlp`, `layers` or `all`.
        sparsity: Requested share of the kind's units, between 0 and 1.
        removed_units: Config key to the number of units set to zero in the whole model.
        removed_parameters: Parameters of the model that belong to them.
        removed_share: The same as a share of all parameters, between 0 and 1.
        quality: Perplexity, divergence from the whole model, agreement with it, tasks.
    """

    kind: str
    sparsity: float
    removed_units: Mapping[str, int]
    removed_parameters: int
    removed_share: float
    quality: tuple[Measurement, ...]

    def measured(self, metric: str) -> Measurement:
        """Return the first measurement of a metric."""
        return next(measurement for measurement in self.quality if measurement.metric == metric)


@dataclass(frozen=True)
class LayerSensitivity:
    """KL divergence from the whole model with a part of one layer disabled, in nats per token.

    Args:
        layer: Index of the layer.
        attention: With the output of its attention set to zero.
        mlp: With the output of its MLP set to zero.
        block: With the whole layer skipped.
    """

    layer: int
    attention: Measurement
    mlp: Measurement
    block: Measurement


@dataclass(frozen=True)
class Analysis:
    """A zero-out analysis: quality against sparsity, and how sensitive each layer is. Nothing is cut or re-fit.

    Args:
        model: Name or path of the model.
        revision: Its commit, or None for a folder that has none.
        model_type: Its architecture.
        num_parameters: Number of its parameters.
        settings: Criteria, levels, seed, and the texts with their fingerprints.
        levels: Every kind at every sparsity, grouped by kind, in ascending order.
        sensitivity: Every layer, in order.
        notes: What a reader must know about this architecture, one line each.
        max_divergence: The KL divergence in nats per token that the advice stays below.
        advice: What the measurements suggest, in one line.
        changes: The advice as values for an `IShrinkConfig`; empty when no measured level stayed below the limit.
        finer_levels: Levels in percent that are worth measuring in that case.
        command: The advice as a command line, with file names instead of paths.
        environment: Where it was measured.
    """

    model: str
    revision: str | None
    model_type: str
    num_parameters: int
    settings: Mapping[str, Any]
    levels: tuple[SparsityLevel, ...]
    sensitivity: tuple[LayerSensitivity, ...]
    notes: tuple[str, ...]
    max_divergence: float
    advice: str
    changes: Mapping[str, Any]
    finer_levels: tuple[float, ...]
    command: str
    environment: Environment

    def to_json(self) -> dict[str, Any]:
        """Return the analysis as a JSON object."""
        return {"schema": ANALYSIS_SCHEMA, **to_plain(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Analysis:
        """Build an analysis from its JSON object.

        Raises:
            SourceError: It is not an analysis, it is damaged, or a later version wrote it.
        """
        _, values = read_schema(data, "analysis", ANALYSIS_SCHEMA)
        return from_plain(cls, values, kind="analysis")

    def kinds(self) -> dict[str, tuple[SparsityLevel, ...]]:
        """Return the levels of each kind, in ascending order of sparsity."""
        found: dict[str, tuple[SparsityLevel, ...]] = {}
        for level in self.levels:
            found[level.kind] = (*found.get(level.kind, ()), level)
        return found
