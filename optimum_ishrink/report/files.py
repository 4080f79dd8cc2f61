"""Names and schema numbers of the files in an output folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SourceError

SCHEMA = 2
"""Schema of `ishrink_plan.json` and `ishrink_report.json`; it increases when a reader of the old form would misread
the new one. `migration` reads older files."""

ANALYSIS_SCHEMA = 1
"""Schema of `analysis.json`."""

CONFIG_FILE = "ishrink_config.json"
PLAN_FILE = "ishrink_plan.json"
REPORT_FILE = "ishrink_report.json"
SCORES_FILE = "ishrink_importance.safetensors"
ANALYSIS_FILE = "analysis.json"


def read_schema(data: Any, kind: str, newest: int = SCHEMA) -> tuple[int, dict[str, Any]]:
    """Return the schema number of a record's JSON object, and its other entries.

    Args:
        data: Contents of the file.
        kind: Its name in messages, such as `"plan"`.
        newest: The newest schema that this version reads.

    Raises:
        SourceError: It is not an object with a schema number, or a later version wrote it.
    """
    schema = data.get("schema") if isinstance(data, Mapping) else None
    if not isinstance(schema, int):
        raise SourceError(f"not an iShrink {kind}: it has no schema number")
    if schema > newest:
        raise SourceError(
            f"this {kind} has schema {schema}, this version reads up to {newest}; upgrade optimum-ishrink"
        )
    return schema, {key: value for key, value in data.items() if key != "schema"}
