"""What devices measured in their browsers: a part of the card for each, with its table and its figure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.digest import digest
from ..core.plot import INK, name_axis, new_figure, save_figure
from ..core.table import escape_cell, literal_table
from ..report.environment import Environment
from ..report.measurement import Measurement
from ..report.report import ModelReport, Report
from ..report.tables import METRICS, speed_header, speed_rows

_VERDICTS = {"faster": ("#3a7d44", "o"), "slower": ("#d1495b", "s")}

_OTHER = ("#6b6b6b", "D")


@dataclass(frozen=True)
class DevicePart:
    """What one device measured.

    Args:
        environment: The device.
        report: The model's report with the figures of this device alone.
    """

    environment: Environment
    report: Report

    @property
    def figure(self) -> str:
        """Name of its figure."""
        words = " ".join(_key(self.environment))
        name = "device-" + re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        return name if words.isascii() else f"{name}-{digest(words)[:6]}"

    @property
    def setting(self) -> str:
        """What all its figures' names begin with, and that of the file's size is: the device and the quantisation."""
        return min((each.dataset for each in self.report.shrunk.speed), key=len)

    @property
    def compared(self) -> list[Measurement]:
        """The figures that were compared with the base's."""
        return [each for each in self.report.shrunk.speed if each.versus_base is not None]

    def to_card(self, figures: Mapping[str, str]) -> dict[str, str]:
        """Return what the card says of it.

        Args:
            figures: The figures' paths in the folder by name.
        """
        place = self.environment
        threads = f"{place.threads} thread{'s' * (place.threads != 1)}"
        cores = "" if place.logical_cores is None else f"{place.logical_cores} logical cores"
        rounds = max(each.n for each in self.report.shrunk.speed)
        return {
            "name": escape_cell(place.cpu),
            "browser": escape_cell(place.browser or ""),
            "how": escape_cell(", ".join(filter(None, (threads, cores, place.device, place.dtype, place.os)))),
            "runtime": escape_cell(place.runtime or ""),
            "rounds": str(rounds),
            "table": literal_table(speed_header(self.report), speed_rows(self.report)),
            "figure": figures.get(self.figure, ""),
            "compared": "yes" if self.compared else "",
        }


def device_parts(report: Report) -> list[DevicePart]:
    """Return what each device measured, in the order of the report.

    Args:
        report: A model's report.
    """
    places: dict[tuple[str, str, str], Environment] = {}
    for each in report.shrunk.speed:
        place = each.environment
        if place is not None and place.browser is not None:
            places[_key(place)] = place
    found = []
    for key, place in places.items():
        only = _only(report, {each.dataset for each in report.shrunk.speed if _is_of(each, key)})
        # Where the model ran alone, a base without figures would be an empty column.
        alone = only.base is None or not only.base.speed
        found.append(DevicePart(place, replace(only, base=None) if alone else only))
    return found


def without_devices(report: Report) -> Report:
    """Return a report without the figures of devices.

    Args:
        report: A model's report.
    """
    return _only(report, {each.dataset for each in report.shrunk.speed if not _in_browser(each)})


def draw_device(part: DevicePart, path: Path) -> None:
    """Draw the speed ratios of a device with their intervals, coloured by the verdict. The line at 1 is the base.

    Args:
        part: What the device measured, with figures that were compared.
        path: The PNG file.
    """
    figure, axes = new_figure(1, 1, 9, 0.36 * len(part.compared) + 1.4)
    axis, seen = axes[0], {}
    axis.axvline(1, color=INK, linewidth=1, linestyle="--")
    for y, each in enumerate(part.compared):
        found = each.versus_base
        assert found is not None
        speed = found.inverted if each.metric.endswith("_seconds") else found
        colour, marker = _VERDICTS.get(speed.verdict, _OTHER)
        axis.hlines(y, *speed.interval, color=colour, linewidth=2.5)
        (seen[speed.verdict],) = axis.plot(speed.ratio, y, marker, color=colour, markersize=7)
    names = [
        METRICS.get(each.metric, each.metric).partition(",")[0] + each.dataset.removeprefix(part.setting)
        for each in part.compared
    ]
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.margins(x=0.08)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    name_axis(axis, "speed, shrunk / base (above 1 is faster)", "ratio over rounds, with 99% interval", "")
    figure.legend(
        list(seen.values()), list(seen), loc="outside lower right", ncols=len(seen), fontsize=8, frameon=False
    )
    save_figure(figure, path)


def _key(place: Environment) -> tuple[str, str, str]:
    return place.cpu, place.dtype, place.device


def _in_browser(each: Measurement) -> bool:
    return each.environment is not None and each.environment.browser is not None


def _is_of(each: Measurement, key: tuple[str, str, str]) -> bool:
    place = each.environment
    return place is not None and place.browser is not None and _key(place) == key


def _only(report: Report, datasets: set[str]) -> Report:
    """Return a report with the speeds of some settings alone."""

    def of(model: ModelReport) -> ModelReport:
        return replace(model, speed=tuple(each for each in model.speed if each.dataset in datasets))

    return replace(report, base=report.base and of(report.base), shrunk=of(report.shrunk))
