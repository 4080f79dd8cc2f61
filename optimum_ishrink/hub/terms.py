"""A derived model inherits the licence and the gating terms of its base."""

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
from .failures import is_transient
from .retries import RetryPolicy

_LICENCE = ("license", "license_name", "license_link")
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


def inherit_terms(card: str, repo_id: str, api: HfApi, retry_policy: RetryPolicy) -> str:
    """Return a card with the licence and the gating terms of its base, where it does not state its metadata.

    Args:
        card: Text of README.md.
        repo_id: The repository that it is pushed to.
        api: Client of the Hub.
        retry_policy: Repeats calls that fail transiently.

    Returns:
        The card, with fields added to its metadata. No field is changed.

    Raises:
        RequestError: The base is gated and the card states another licence; or the card's metadata cannot be read.
    """
    metadata = _metadata(card)
    base = metadata.get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    if not isinstance(base, str):
        return card
    try:
        validate_repo_id(base)
        info = retry_policy.call(f"reading the licence of {base}", lambda: api.model_info(base))
    except HFValidationError:
        return card
    except HfHubHTTPError as error:
        if is_transient(error) or error.response.status_code not in (401, 403, 404):
            raise
        note(f"{base} cannot be read on the Hub, so its licence was not compared with the card's")
        return card
    base_metadata: dict[str, Any] = dict(info.card_data.__dict__) if info.card_data is not None else {}
    _compare(metadata, base_metadata, base, bool(info.gated))
    if info.gated:
        licence = base_metadata.get("license_name") or base_metadata.get("license")
        terms = f"its licence ({licence}) and its terms hold" if licence else "its terms hold"
        note(
            f"{base} is gated: {terms} for this model as well. To ask its readers for the same consent: "
            f"hf repos settings {repo_id} --gated {info.gated}"
        )
    missing = _missing(metadata, base_metadata)
    return _add(card, missing) if missing else card


def _compare(metadata: Mapping[str, Any], base_metadata: Mapping[str, Any], base: str, gated: bool) -> None:
    """Refuse a licence that overrides that of a gated base; note one that differs from that of an open base."""
    for key in _LICENCE:
        if metadata.get(key) and base_metadata.get(key) and metadata[key] != base_metadata[key]:
            difference = f"README.md says {key}: {metadata[key]}, but {base} says {key}: {base_metadata[key]}"
            if gated:
                raise RequestError(
                    f"{difference}, and is gated: a derived model inherits its licence; correct README.md and "
                    "push again"
                )
            note(f"{difference}; the card's is published")


def _missing(metadata: Mapping[str, Any], base_metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the base's card states and the model's does not: the whole licence, and the gating terms."""
    names = [key for key in base_metadata if key.startswith("extra_gated_")]
    # The name and link of one licence do not apply to another.
    if not metadata.get("license") or metadata["license"] == base_metadata.get("license"):
        names += _LICENCE
    return {key: base_metadata[key] for key in names if base_metadata.get(key) and not metadata.get(key)}


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
    """Add fields to a card's metadata, and leave every other character as it is."""
    found = _FRONT_MATTER.match(card)
    assert found is not None  # a card without metadata names no base
    # A key without a value would appear twice.
    head = re.sub(
        rf"^(?:{'|'.join(map(re.escape, fields))}):[ \t]*(?:null|~|''|\"\")?[ \t]*\n?", "", found[1], flags=re.M
    )
    body = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)
    return f"---\n{head.rstrip()}\n{body}---\n{card[found.end() :]}"
