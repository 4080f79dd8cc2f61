"""Licence and languages of a source, as the metadata of its card names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load


def _card_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of the folder's card; empty where there is no card or it cannot be read."""
    try:
        return metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def card_languages(folder: Path) -> tuple[str, ...]:
    """Return the languages that the folder's card names."""
    found = _card_metadata(folder).get("language")
    names = found if isinstance(found, list) else [] if found is None else [found]
    # YAML 1.1 reads an unquoted `no`, Norwegian, as false.
    return tuple("no" if name is False else str(name) for name in names if name is not None and name != "")


def card_license(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the licence that the folder's card names, with its name and link where it is a custom one."""
    data = _card_metadata(folder)
    found = data.get("license")
    if isinstance(found, list):
        found = found[0] if found else None
    details = {key: str(data[key]) for key in ("license_name", "license_link") if data.get(key)}
    return (str(found) if found else None), details
