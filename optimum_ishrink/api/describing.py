"""Descriptions of architectures: drafting one for a family that has none, and proving one that is there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.hub_download import download_config
from ..core.json_files import read_json
from ..drafting import checking, draft
from ..errors import SourceError


def draft_description(
    model: str | Path | Mapping[str, Any], *, revision: str | None = None, token: str | bool | None = None
) -> draft.Draft:
    """Draft the description of a model's architecture, and prove it on a tiny random model. No weights are read.

    Args:
        model: Folder with a config.json, a config file, a Hub id, or the contents of a config.json.
        revision: Branch, tag or commit of a Hub repository.
        token: Hub token; never stored.

    Returns:
        The draft: the description as the JSON object of its file, what was proved, and what could not be told.

    Raises:
        ArchitectureError: transformers holds no causal class for it, it needs remote code, or it combines models.
        SourceError: There is no config, its class refuses it, or it cannot be made tiny; the message names the key.
    """
    raw = read_config(model, revision=revision, token=token)
    found = draft.draft_description(raw)
    name = "" if isinstance(model, Mapping) else str(model).rstrip("/").rpartition("/")[2].removesuffix(".json")
    return draft.Draft({**found.data, "models": name}, found.proofs, found.unknown, found.notes)


def check_description(
    model: str | Path | Mapping[str, Any], *, revision: str | None = None, token: str | bool | None = None
) -> checking.Check:
    """Prove the description that a model's architecture has, on a tiny random model with the flags of its config.

    Args:
        model: Folder with a config.json, a config file, a Hub id, or the contents of a config.json.
        revision: Branch, tag or commit of a Hub repository.
        token: Hub token; never stored.

    Returns:
        What was proved.

    Raises:
        ArchitectureError: The architecture has no description, or it does not account for every parameter.
        SourceError: There is no config, its class refuses it, or it cannot be made tiny; the message names the key.
        VerificationError: It proves false; the message names the dimension, the largest difference and the axis.
    """
    return checking.check_description(read_config(model, revision=revision, token=token))


def read_config(
    model: str | Path | Mapping[str, Any], *, revision: str | None = None, token: str | bool | None = None
) -> Mapping[str, Any]:
    """Return the contents of a model's config.json; of a Hub repository nothing else is fetched.

    Args:
        model: Folder, config file, Hub id, or the contents.
        revision: Branch, tag or commit of a Hub repository.
        token: Hub token; never stored.

    Raises:
        SourceError: There is no config.json, or it is no JSON object.
    """
    if isinstance(model, Mapping):
        return model
    path, name = Path(model).expanduser(), str(model)
    if path.is_dir():
        path = path / "config.json"
    elif not path.is_file():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise SourceError(f"{name} does not exist; name a folder with a config.json, or a Hub id")
        path = download_config(name, revision, token) / "config.json"
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise SourceError(f"{path} is not a JSON object")
    return raw
