"""What the stages hand to one another: frozen, and each with a file that it can be read back from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from ..errors import SourceError, unknown_name

SCHEMA = 1
"""Version of the files below; it grows when a reader of the old form would misread the new one."""


REPORT_SCHEMA = 2
"""Version of `ishrink_report.json`, which has grown since: 2 added comparisons, samples and failures."""


CONFIG_FILE = "ishrink_config.json"


PLAN_FILE = "ishrink_plan.json"


REPORT_FILE = "ishrink_report.json"


SCORES_FILE = "ishrink_importance.safetensors"


ANALYSIS_FILE = "analysis.json"


def checked_entries(cls: type, data: Mapping[str, Any], kind: str, schema: int = SCHEMA) -> dict[str, Any]:
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
