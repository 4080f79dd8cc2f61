"""The report of a run: what was measured, and what compensation and recovery did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.json_codec import from_plain, rare_entry, to_plain
from .budget import BudgetRecord
from .compensation import CompensationRecord
from .conditions import conditions
from .environment import Environment
from .files import SCHEMA, read_schema
from .measurement import Comparison, Failure, Measurement, Sample
from .origin import Origin
from .recovery import RecoveryRecord
from .sparsity import SparsityRecord
from .stages import StageRecord


@dataclass(frozen=True)
class ModelReport:
    """Everything measured of one model.

    Args:
        name: Name or path of the model.
        params: Number of parameters, counted in the files.
        bytes: Bytes of the weight files.
        quality: Perplexity, divergence from the base, tasks.
        speed: Latency and throughput.
    """

    name: str
    params: int
    bytes: int
    quality: tuple[Measurement, ...] = ()
    speed: tuple[Measurement, ...] = ()

    def measured_in(self, environment: Environment) -> ModelReport:
        """Return it with the environment of every figure that names none: for a report of another environment.

        Args:
            environment: Where they were measured.
        """

        def placed(entries: tuple[Measurement, ...]) -> tuple[Measurement, ...]:
            return tuple(each if each.environment else each.with_environment(environment) for each in entries)

        return replace(self, quality=placed(self.quality), speed=placed(self.speed))


@dataclass(frozen=True)
class Report:
    """Base and shrunk model side by side, and where they were measured.

    Args:
        base: The base's figures, or None when there was no base.
        shrunk: The shrunk model's figures.
        environment: Hardware, threads and versions.
        comparisons: How much of each figure is retained, where both models were measured on the same data.
        samples: What both models generate after a few fixed prompts.
        failures: Requested measurements that could not be made; a report with any is incomplete.
        origin: Where the shrunk model comes from; None where nothing was cut.
        compensation: What compensation did; None where nothing was cut.
        recovery: What recovery did; None where there was none.
        budget: What the model was searched for; None where no search made it.
        sparsity: The zeros in the matrices of the layers; None where none were requested.
        stages: The cuts and recoveries of a schedule, in order; None where there was none.
    """

    base: ModelReport | None
    shrunk: ModelReport
    environment: Environment
    comparisons: tuple[Comparison, ...] = ()
    samples: tuple[Sample, ...] = ()
    failures: tuple[Failure, ...] = ()
    origin: Origin | None = None
    compensation: CompensationRecord | None = None
    recovery: RecoveryRecord | None = None
    budget: BudgetRecord | None = None
    sparsity: SparsityRecord | None = rare_entry()  # noqa: RUF009 - a field
    stages: tuple[StageRecord, ...] | None = rare_entry()

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Build a report from its JSON object, of this schema or an older one.

        Raises:
            SourceError: It is not a report, it is damaged, or a later version wrote it.
        """
        _, values = read_schema(data, "report")
        return from_plain(cls, values, kind="report")

    def comparison(self, measurement: Measurement) -> Comparison | None:
        """Return how much of a figure is retained, or None where unknown."""
        key = (measurement.metric, measurement.dataset)
        return next((found for found in self.comparisons if (found.metric, found.dataset) == key), None)

    def pairs(self, part: str) -> Iterator[tuple[Measurement | None, Measurement]]:
        """Yield each of the shrunk model's measurements with the base's of the same metric and data, if there is one.

        Figures that were measured otherwise, such as on other windows or another machine, are none to compare with.

        Args:
            part: `"quality"` or `"speed"`.
        """
        base = {(m.metric, m.dataset): m for m in getattr(self.base, part)} if self.base else {}
        for measurement in getattr(self.shrunk, part):
            found = base.get((measurement.metric, measurement.dataset))
            alike = found is not None and conditions(found, part, self) == conditions(measurement, part, self)
            yield found if alike else None, measurement
