"""The base's licence and the terms of its gate go with what was made of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..core.progress import note
from ..errors import RequestError
from .failures import passes
from .retries import Patience

_LICENCE = ("license", "license_name", "license_link")
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


def keep_terms(card: str, repo_id: str, api: HfApi, patience: Patience) -> str:
    """Return a card with the licence and the gating terms of its base, where it does not state its own.

    Args:
        card: Text of README.md.
        repo_id: Where it is pushed to.
        api: Client of the Hub.
        patience: Repeats what fails for a moment.

    Returns:
        The card, with fields added to its metadata and none changed.

    Raises:
        RequestError: The base is gated, and the card states another licence; or the card's metadata cannot be read.
    """
    own = _metadata(card)
    base = own.get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    if not isinstance(base, str):
        return card
    try:
        validate_repo_id(base)
        info = patience.call(f"reading the licence of {base}", lambda: api.model_info(base))
    except HFValidationError:
        return card
    except HfHubHTTPError as error:
        if passes(error) or error.response.status_code not in (401, 403, 404):
            raise
        note(f"{base} cannot be seen on the Hub, so its licence could not be compared with the card's")
        return card
    theirs: dict[str, Any] = dict(info.card_data.__dict__) if info.card_data is not None else {}
    _compare(own, theirs, base, bool(info.gated))
    if info.gated:
        licence = theirs.get("license_name") or theirs.get("license")
        terms = f"its licence ({licence}) and its terms hold" if licence else "its terms hold"
        note(
            f"{base} is gated: {terms} for this model as well. To ask its readers for the same consent: "
            f"hf repos settings {repo_id} --gated {info.gated}"
        )
    missing = _missing(own, theirs)
    return _add(card, missing) if missing else card


def _compare(own: Mapping[str, Any], theirs: Mapping[str, Any], base: str, gated: bool) -> None:
    """Refuse a licence that overrides that of a gated base; name one that differs from a free base's."""
    for key in _LICENCE:
        if own.get(key) and theirs.get(key) and own[key] != theirs[key]:
            difference = f"README.md says {key}: {own[key]}, but {base} says {key}: {theirs[key]}"
            if gated:
                raise RequestError(
                    f"{difference}, and is gated: a derived model keeps its licence; correct README.md and push again"
                )
            note(f"{difference}; the card's goes")


def _missing(own: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the base's card states and the own does not: the licence, whole, and the terms of the gate."""
    names = [key for key in theirs if key.startswith("extra_gated_")]
    # The name and link of one licence say nothing of another.
    if not own.get("license") or own["license"] == theirs.get("license"):
        names += _LICENCE
    return {key: theirs[key] for key in names if theirs.get(key) and not own.get(key)}


def _metadata(card: str) -> dict[str, Any]:
    found = _FRONT_MATTER.match(card)
    try:
        values = (yaml.safe_load(found[1]) if found else None) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"the metadata of README.md is not YAML ({reason}); correct it and push again") from None
    if not isinstance(values, dict):
        raise RequestError("the metadata of README.md is not a list of `key: value`; correct it and push again")
    return values


def _add(card: str, fields: Mapping[str, Any]) -> str:
    """Add fields to a card's metadata, and leave every other letter as it is."""
    found = _FRONT_MATTER.match(card)
    assert found is not None  # a card without metadata names no base
    # A key that is there without a value would come twice.
    head = re.sub(
        rf"^(?:{'|'.join(map(re.escape, fields))}):[ \t]*(?:null|~|''|\"\")?[ \t]*\n?", "", found[1], flags=re.M
    )
    body = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)
    return f"---\n{head.rstrip()}\n{body}---\n{card[found.end() :]}"
