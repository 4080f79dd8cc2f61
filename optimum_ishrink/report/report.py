"""What the stages hand to one another: frozen, and each with a file that it can be read back from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .files import REPORT_SCHEMA, checked_entries
from .measurement import Comparison, Failure, Measurement, Sample


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


@dataclass(frozen=True)
class Report:
    """Base and shrunk model side by side, and where they were measured.

    Args:
        base: The base's figures, or None when there was no base.
        shrunk: The shrunk model's.
        environment: Hardware, threads and versions.
        comparisons: How much of each figure is kept, where both models answered the same questions.
        samples: What both write behind a few fixed prompts.
        failures: What was asked for and could not be measured; a report with any is incomplete.
    """

    base: ModelReport | None
    shrunk: ModelReport
    environment: Mapping[str, Any]
    comparisons: tuple[Comparison, ...] = ()
    samples: tuple[Sample, ...] = ()
    failures: tuple[Failure, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {"schema": REPORT_SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Build a report from its JSON object.

        Raises:
            SourceError: It is not a report, or it was written by a later version.
        """
        values = checked_entries(cls, data, "report", REPORT_SCHEMA)
        for name in ("base", "shrunk"):
            if values[name] is not None:
                model = dict(values[name])
                for part in ("quality", "speed"):
                    model[part] = tuple(Measurement(**entry) for entry in model[part])
                values[name] = ModelReport(**model)
        for name, kind in (("comparisons", Comparison), ("samples", Sample), ("failures", Failure)):
            values[name] = tuple(kind(**entry) for entry in values.get(name, ()))
        return cls(**values)

    def comparison(self, measurement: Measurement) -> Comparison | None:
        """Return how much of a figure is kept, or None where that is not known."""
        key = (measurement.metric, measurement.dataset)
        return next((found for found in self.comparisons if (found.metric, found.dataset) == key), None)

    def pairs(self, part: str) -> Iterator[tuple[Measurement | None, Measurement]]:
        """Yield each of the shrunk model's measurements with the base's of the same metric and data, if there is one.

        Args:
            part: `"quality"` or `"speed"`.
        """
        base = {(m.metric, m.dataset): m for m in getattr(self.base, part)} if self.base else {}
        for measurement in getattr(self.shrunk, part):
            yield base.get((measurement.metric, measurement.dataset)), measurement
