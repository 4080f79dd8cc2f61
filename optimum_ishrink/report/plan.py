"""What the stages hand to one another: frozen, and each with a file that it can be read back from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .files import SCHEMA, checked_entries


@dataclass(frozen=True)
class Plan:
    """Which layers and units stay. Arithmetic only: it knows no weights.

    Args:
        model: Name or path of the source.
        revision: The source's commit, or None for a folder that has none.
        model_type: The architecture.
        shape: Config key to size, before.
        new_shape: Config key to size, after.
        layers: Indices of the layers that stay, in order.
        units: For KV groups, query heads and neurons, by config key: the indices that stay in each layer of `layers`.
            Neurons of experts are counted through: expert `e`'s neuron `i` is `e * width + i`.
        config_changes: Config key to its values before and after; None before means that the key was absent.
        num_parameters: Parameters before.
        new_num_parameters: Parameters after.
        settings: How the choice was made: criteria, calibration, seed.
        merges: In each layer of `layers`, the KV heads that each new KV head is the mean of; None when none are
            merged.
        inexact: Why the result is not the original with the removed units at zero; empty when it is.
    """

    model: str
    revision: str | None
    model_type: str
    shape: Mapping[str, int]
    new_shape: Mapping[str, int]
    layers: tuple[int, ...]
    units: Mapping[str, tuple[tuple[int, ...], ...]]
    config_changes: Mapping[str, tuple[Any, Any]]
    num_parameters: int
    new_num_parameters: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    merges: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    inexact: tuple[str, ...] = ()

    @property
    def removed_share(self) -> float:
        """Share of the parameters that goes, between 0 and 1."""
        return 1 - self.new_num_parameters / self.num_parameters

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Build a plan from its JSON object.

        Raises:
            SourceError: It is not a plan, or it was written by a later version.
        """
        values = checked_entries(cls, data, "plan")
        values["layers"] = tuple(values["layers"])
        values["units"] = {key: tuple(map(tuple, rows)) for key, rows in values["units"].items()}
        if values.get("merges") is not None:
            values["merges"] = tuple(tuple(map(tuple, layer)) for layer in values["merges"])
        values["inexact"] = tuple(values.get("inexact", ()))
        values["config_changes"] = {key: (old, new) for key, (old, new) in values["config_changes"].items()}
        return cls(**values)
