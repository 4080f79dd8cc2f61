"""Reading files of schema 1.

In schema 1 a plan had `settings`: how units and layers were chosen, and what happened after planning. Schema 2 has the
former in the plan's `choice` and the latter in the report. Reports of schema 1 lack only optional entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SourceError

_CHOICE = ("importance", "layer_importance", "layer_selection", "seed")


def migrate_plan(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a plan of schema 1 as one of schema 2, and the entries that belong in the report.

    Args:
        values: The plan's entries without its schema number.

    Returns:
        The plan's entries, and the report's `origin`, `compensation` and `recovery` where the plan has them.

    Raises:
        SourceError: The settings are not those of schema 1.
    """
    plan = {key: value for key, value in values.items() if key != "settings"}
    settings = values.get("settings", {})
    if not isinstance(settings, Mapping):
        raise SourceError("this plan is damaged: settings is not an object")
    plan["choice"] = {key: settings[key] for key in _CHOICE if key in settings}
    calibration = settings.get("calibration")
    if isinstance(calibration, Mapping):
        # Early plans lack this entry: importance read all windows.
        plan["choice"]["calibration"] = {"importance_samples": calibration.get("samples"), **calibration}
    later = {key: settings[key] for key in ("origin", "compensation", "recovery") if settings.get(key) is not None}
    return plan, later
