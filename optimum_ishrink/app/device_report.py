"""The report of a device: what the page's button 'Measure' saves. Read strictly; its verdicts are not used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..core.json_codec import from_plain
from ..core.json_files import read_json
from ..errors import SourceError
from ..planning.profile_schema import DEVICE_REPORT

SCHEMA = 1

ROLES = ("base", "shrunk")

METRICS = (
    "model_load_seconds",
    "time_to_first_token_seconds",
    "decode_tokens_per_second",
    "response_seconds",
    "peak_memory_bytes",
)
"""What a device measures."""

_EVERY_ROUND = ("time_to_first_token_seconds", "decode_tokens_per_second", "response_seconds")

_WARM = ", warm cache"
"""What is timed in every round: these, and loading from a warm cache."""

_NAME_LENGTH = 60
_NOTE_LENGTH = 1000
_MOST_MEMORY_GB = 2**20

BACKENDS = ("cpu", "webgpu")

_MOST_ROUNDS = 10_000


@dataclass(frozen=True)
class Device:
    """The device, as its browser and its user describe it.

    Args:
        name: What its user typed; empty where nothing was.
        user_agent: What the browser calls itself.
        platform: Operating system and processor, as far as the browser tells.
        browser: Name and version of the browser.
        cores: Logical cores; None where the browser does not tell.
        memory_gb: Memory in GiB, rounded by the browser; None where it does not tell.
        mobile: Whether it is a mobile device; None where the browser does not tell.
    """

    name: str
    user_agent: str
    platform: str
    browser: str
    cores: int | None
    memory_gb: float | None
    mobile: bool | None


@dataclass(frozen=True)
class DeviceRuntime:
    """What ran the models.

    Args:
        name: The runtime.
        package: Package and version that brought it into the browser.
        build: Its build.
        threads: Threads that it used.
        backend: `cpu` or `webgpu`.
        cross_origin_isolated: Whether the browser allowed several threads.
    """

    name: str
    package: str
    build: str
    threads: int
    backend: str
    cross_origin_isolated: bool


@dataclass(frozen=True)
class DeviceSettings:
    """What was timed.

    Args:
        rounds: Rounds.
        prompt_lengths: Lengths of the prompts in tokens.
        new_tokens: Tokens that were decoded after each.
        context: Tokens that the KV cache had room for.
    """

    rounds: int
    prompt_lengths: tuple[int, ...]
    new_tokens: int
    context: int


@dataclass(frozen=True)
class DeviceModel:
    """A model that ran.

    Args:
        role: `base` or `shrunk`.
        name: Its name.
        file: Name of its file.
        bytes: Bytes of it.
        sha256: SHA-256 of it.
        quantization: Its quantisation.
        vocabulary: Its tokens.
    """

    role: str
    name: str
    file: str
    bytes: int
    sha256: str
    quantization: str
    vocabulary: int


@dataclass(frozen=True)
class DeviceSamples:
    """One figure of one model in every round.

    Args:
        role: The model's role.
        metric: One of `METRICS`.
        setting: What it was measured on, such as `, prompt 64`; empty for the whole model.
        values: The values of each round, one or two turns. Loading from a cold cache is timed in the first rounds
            alone, and memory once.
    """

    role: str
    metric: str
    setting: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class DeviceReport:
    """What a device measured.

    Args:
        kind: What the file is.
        created: When it was measured, in ISO 8601.
        device: The device.
        runtime: What ran the models.
        page: The page's version.
        settings: What was timed.
        models: The models.
        samples: The figures.
        comparisons: The page's own verdicts, which are computed again and not used.
        notes: What could not be measured, a line each.
        profile: The cost profile, for a search; None where none was measured.
    """

    kind: str
    created: str
    device: Device
    runtime: DeviceRuntime
    page: Mapping[str, str]
    settings: DeviceSettings
    models: tuple[DeviceModel, ...]
    samples: tuple[DeviceSamples, ...]
    comparisons: Any = ()
    notes: tuple[str, ...] = ()
    profile: Any = None

    @property
    def label(self) -> str:
        """What the device is called in reports: its name, or else what its browser says of it."""
        device = self.device
        said = (device.platform.strip(), device.browser.strip(), f"{device.cores} cores" if device.cores else "")
        return device.name.strip() or ", ".join(filter(None, said)) or "a device without a name"

    def model(self, role: str) -> DeviceModel | None:
        """Return the model of a role; None where there is none.

        Args:
            role: `base` or `shrunk`.
        """
        return next((model for model in self.models if model.role == role), None)


def read_device_report(path: Path) -> DeviceReport:
    """Read a device's report.

    Args:
        path: The file.

    Raises:
        SourceError: It is missing, damaged, no report of a device, or of a later version; or its numbers contradict
            one another.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("kind") != DEVICE_REPORT:
        raise SourceError(
            f"{path} is not a report of a device; the page of `ishrink app` saves one after its button 'Measure'"
        )
    schema = data.get("schema")
    if schema != SCHEMA:
        raise SourceError(f"{path} has schema {schema!r}, this version reads {SCHEMA}; upgrade optimum-ishrink")
    try:
        values = {name: value for name, value in data.items() if name != "schema"}
        report = from_plain(DeviceReport, values, kind="report of a device")
        _check(report)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None
    return report


def _check(report: DeviceReport) -> None:
    """Check what types do not say.

    Raises:
        SourceError: Something is wrong; the message says what.
    """
    roles = [model.role for model in report.models]
    if sorted(roles) not in (["shrunk"], ["base", "shrunk"]):
        raise _damaged(f"its models are {', '.join(roles) or 'none'}, not one shrunk model and at most one base")
    if not report.samples:
        raise _damaged("it holds no figures; press 'Measure' and wait until it is done")
    settings = report.settings
    numbers = (settings.rounds, settings.new_tokens, settings.context, report.runtime.threads)
    if min(*numbers, *settings.prompt_lengths) < 1 or settings.rounds > _MOST_ROUNDS:
        raise _damaged("its settings are not whole numbers of at least 1")
    try:
        datetime.fromisoformat(report.created.replace("Z", "+00:00"))
    except ValueError:
        raise _damaged(f"created is {report.created[:40]!r}, not a time such as 2026-11-29T20:40:00Z") from None
    device, runtime = report.device, report.runtime
    if runtime.backend not in BACKENDS:
        raise _damaged(f"its backend is {runtime.backend[:40]!r}, not one of {', '.join(BACKENDS)}")
    if device.memory_gb is not None and not 0 < device.memory_gb < _MOST_MEMORY_GB:
        raise _damaged(f"memory_gb is {device.memory_gb}, not a size")
    for note in (*report.notes, device.user_agent):
        if not note.isprintable() or len(note) > _NOTE_LENGTH:
            raise _damaged(f"{note[:40]!r} is no line of text")
    shown = (device.name, device.browser, device.platform, runtime.build, runtime.name, runtime.package)
    for text in (*shown, *(text for model in report.models for text in (model.name, model.file, model.quantization))):
        if not text.isprintable() or len(text) > 4 * _NAME_LENGTH:
            raise _damaged(f"{text[:40]!r} is no name")
    for model in report.models:
        if model.bytes < 1 or len(model.sha256) != 64:
            raise _damaged(f"the {model.role} model has {model.bytes} bytes and the SHA-256 {model.sha256[:64]!r}")
    _check_samples(report, roles)


def _check_samples(report: DeviceReport, roles: list[str]) -> None:
    seen = set()
    for each in report.samples:
        what = f"{each.metric}{each.setting} of the {each.role} model"
        if each.metric not in METRICS or each.role not in roles:
            raise _damaged(f"it has figures of {each.metric[:60]} of the {each.role[:20]} model, which are not known")
        if not each.setting.isprintable() or len(each.setting) > _NAME_LENGTH:
            raise _damaged(f"{each.setting[:40]!r} is no setting")
        if (each.role, each.metric, each.setting) in seen:
            raise _damaged(f"it has {what} twice")
        seen.add((each.role, each.metric, each.setting))
        turns = {len(values) for values in each.values}
        whole = each.metric in _EVERY_ROUND or each.setting == _WARM
        if (
            len(each.values) > report.settings.rounds
            or turns not in ({1}, {2})
            or (whole and len(each.values) < report.settings.rounds)
        ):
            raise _damaged(
                f"{what} has {len(each.values)} rounds of {', '.join(map(str, sorted(turns))) or 'no'} turns, where "
                f"{report.settings.rounds} of one or two are expected"
            )
        if not all(math.isfinite(value) and value > 0 for values in each.values for value in values):
            raise _damaged(f"{what} has a value that is not a number above 0")


def _damaged(what: str) -> SourceError:
    return SourceError(f"this report of a device is damaged: {what}; measure again")
