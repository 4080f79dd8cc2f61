"""What the stages hand to one another: frozen, and each with a file that it can be read back from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..report.files import SCHEMA, checked_entries
from ..report.measurement import Measurement


@dataclass(frozen=True)
class SparsityLevel:
    """What a model still says with a share of its units set to zero.

    Args:
        kind: What was set to zero: `attention`, `mlp`, `layers` or `all`.
        sparsity: Share of the kind's units that was asked for, between 0 and 1.
        removed_units: Config key to the number of units at zero in the whole model.
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

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SparsityLevel:
        """Build a level from plain values."""
        return cls(**{**data, "quality": tuple(Measurement(**entry) for entry in data["quality"])})


@dataclass(frozen=True)
class LayerSensitivity:
    """KL divergence from the whole model with a part of one layer out, in nats per token.

    Args:
        layer: Index of the layer.
        attention: With what its attention projects set to zero.
        mlp: With what its MLP projects down set to zero.
        block: With the whole layer skipped.
    """

    layer: int
    attention: Measurement
    mlp: Measurement
    block: Measurement

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerSensitivity:
        """Build an entry from plain values."""
        parts = {name: Measurement(**data[name]) for name in ("attention", "mlp", "block")}
        return cls(**{**data, **parts})


@dataclass(frozen=True)
class Analysis:
    """A zero-out analysis: quality against sparsity, and what each layer is worth. Nothing was cut or repaired.

    Args:
        model: Name or path of the model.
        revision: Its commit, or None for a folder that has none.
        model_type: The architecture.
        num_parameters: Its parameters.
        settings: Criteria, levels, seed, and the texts with their fingerprints.
        levels: Every kind at every sparsity, kinds together and sparsities ascending.
        sensitivity: Every layer in order.
        notes: What a reader must know of this architecture, a line each.
        max_divergence: The KL divergence in nats per token that the advice stays below.
        advice: What the measurements amount to, in one line.
        changes: The advice as values for an `IShrinkConfig`; empty when no measured level stayed below.
        finer_levels: Levels in percent that are worth measuring then.
        command: The advice as a command line; files go by their own names.
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
    environment: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the analysis as a JSON object."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Analysis:
        """Build an analysis from its JSON object.

        Raises:
            SourceError: It is not an analysis, or it was written by a later version.
        """
        values = checked_entries(cls, data, "analysis")
        values["levels"] = tuple(SparsityLevel.from_dict(entry) for entry in values["levels"])
        values["sensitivity"] = tuple(LayerSensitivity.from_dict(entry) for entry in values["sensitivity"])
        values["notes"], values["finer_levels"] = tuple(values["notes"]), tuple(values["finer_levels"])
        return cls(**values)

    def kinds(self) -> dict[str, tuple[SparsityLevel, ...]]:
        """Return the levels of each kind, sparsities ascending."""
        found: dict[str, tuple[SparsityLevel, ...]] = {}
        for level in self.levels:
            found[level.kind] = (*found.get(level.kind, ()), level)
        return found
