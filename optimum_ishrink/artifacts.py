"""What the stages hand to one another: frozen, and each with a file that it can be read back from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from .errors import SourceError, unknown_name

SCHEMA = 1
"""Version of the files below; it grows when a reader of the old form would misread the new one."""

REPORT_SCHEMA = 2
"""Version of `ishrink_report.json`, which has grown since: 2 added comparisons, samples and failures."""

CONFIG_FILE = "ishrink_config.json"
PLAN_FILE = "ishrink_plan.json"
REPORT_FILE = "ishrink_report.json"
SCORES_FILE = "ishrink_importance.safetensors"
ANALYSIS_FILE = "analysis.json"


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
        values = _checked(cls, data, "plan")
        values["layers"] = tuple(values["layers"])
        values["units"] = {key: tuple(map(tuple, rows)) for key, rows in values["units"].items()}
        if values.get("merges") is not None:
            values["merges"] = tuple(tuple(map(tuple, layer)) for layer in values["merges"])
        values["inexact"] = tuple(values.get("inexact", ()))
        values["config_changes"] = {key: (old, new) for key, (old, new) in values["config_changes"].items()}
        return cls(**values)


@dataclass(frozen=True)
class Measurement:
    """One measured number.

    Args:
        metric: What was measured, such as `"perplexity"` or `"decode_tokens_per_second"`.
        dataset: On what: a text, a task, or a speed setting.
        value: The number.
        stderr: Its standard error, where one can be computed.
        n: How many independent observations it rests on (windows, questions, rounds).
        settings: All that is needed to measure it again.
    """

    metric: str
    dataset: str
    value: float
    stderr: float | None
    n: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def median_measurement(
    metric: str, dataset: str, samples: Sequence[float], settings: Mapping[str, Any], n: int | None = None
) -> Measurement:
    """Return the median of what was measured several times, with its quartiles and the samples themselves.

    Args:
        metric: What was measured.
        dataset: On what.
        samples: The values, at least one.
        settings: All that is needed to measure it again.
        n: How many independent observations they are; one each by default.
    """
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else [*samples] * 3
    facts = {**settings, "statistic": "median", "quartiles": [low, high], "samples": list(samples)}
    return Measurement(metric, dataset, median(samples), None, len(samples) if n is None else n, facts)


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
class Comparison:
    """How much of a figure the shrunk model keeps, from the same questions or windows put to both models.

    Args:
        metric: The metric, as the measurements name it.
        dataset: The task or text.
        n: Questions or windows in each model's figure; they are the same ones.
        ratio: The shrunk model's figure over the base's; None when the base's is 0.
        ratio_low: Lower end of its 95 % confidence interval; None when it has none.
        ratio_high: Upper end of it.
        difference: The shrunk model's figure less the base's.
        difference_low: Lower end of its 95 % confidence interval.
        difference_high: Upper end of it.
        higher_is_better: Whether a higher figure is the better one.
        base_only: Questions that only the base got right; None where answers are not right or wrong.
        shrunk_only: Questions that only the shrunk model got right.
        p_value: Of McNemar's exact test that both are right equally often; None where answers are not right or wrong.
        verdict: `no worse`, `worse`, or `too few questions to tell` (of a text: `too few windows to tell`).
        settings: How the interval and the verdict were come by.
    """

    metric: str
    dataset: str
    n: int
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    difference: float
    difference_low: float
    difference_high: float
    higher_is_better: bool
    base_only: int | None
    shrunk_only: int | None
    p_value: float | None
    verdict: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What the models write behind one prompt.

    Args:
        prompt: The prompt, before any chat template.
        base: The base's words; None when there was no base.
        shrunk: The shrunk model's words.
        settings: How they were generated.
    """

    prompt: str
    base: str | None
    shrunk: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """What was asked for and could not be measured.

    Args:
        dataset: The task, or the group of tasks.
        reason: Why, and what to do about it, in one line.
    """

    dataset: str
    reason: str


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
        values = _checked(cls, data, "report", REPORT_SCHEMA)
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
        values = _checked(cls, data, "analysis")
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


def _checked(cls: type, data: Mapping[str, Any], kind: str, schema: int = SCHEMA) -> dict[str, Any]:
    """Return the entries of an artifact's JSON object, checked against the fields of its class."""
    if not isinstance(data, Mapping) or not isinstance(data.get("schema"), int):
        raise SourceError(f"not an iShrink {kind}: it has no schema number")
    if data["schema"] > schema:
        raise SourceError(f"this {kind} has schema {data['schema']}, this version reads up to {schema}; upgrade it")
    values = {key: value for key, value in data.items() if key != "schema"}
    names = {entry.name for entry in fields(cls)}
    needed = {entry.name for entry in fields(cls) if entry.default is MISSING and entry.default_factory is MISSING}
    for key in values:
        if key not in names:
            raise SourceError(unknown_name(f"entry of the {kind}", key, names))
    if missing := needed - set(values):
        raise SourceError(f"this {kind} lacks {', '.join(sorted(missing))}")
    return values


def write_json(path: Path, data: Any) -> None:
    """Write an artifact's JSON, one entry a line for what people read and compact for long lists of numbers.

    It is written beside its place and renamed: at any time the file is whole.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        staged.write_text(_dump(data, 0) + "\n", encoding="utf-8")
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _dump(value: Any, indent: int) -> str:
    if isinstance(value, Mapping) and value:
        pad = " " * (indent + 2)
        body = ",\n".join(f"{pad}{json.dumps(str(key))}: {_dump(item, indent + 2)}" for key, item in value.items())
        return "{\n" + body + "\n" + " " * indent + "}"
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (Mapping, list, tuple)):
        pad = " " * (indent + 2)
        return "[\n" + ",\n".join(pad + _dump(item, indent + 2) for item in value) + "\n" + " " * indent + "]"
    return json.dumps(value, ensure_ascii=False)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        SourceError: It is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except ValueError as error:
        raise SourceError(f"{path} is not JSON ({error})") from None
