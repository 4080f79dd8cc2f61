"""Models of several parts, of which the text decoder is cut: a vision tower and a projector feed its embeddings.

A composite is data, as an architecture is: a JSON file says where the config and the tensors of the decoder are, and
the description of the decoder's own architecture says the rest. All other parts are carried over as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import ArchitectureError, RequestError, unknown_name
from .description import Description, Dimension, describe

PART_KEYS = frozenset({"text_config", "vision_config", "audio_config"})
"""Config keys that hold the config of a part of a model, where it has several."""


@dataclass(frozen=True)
class TextPart:
    """How a decoder that has no description of its own is described.

    Args:
        described_as: The `model_type` whose description holds for it.
        fixed: Dimensions that it cannot change although the other architecture can, with the reason.
    """

    described_as: str
    fixed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FirstLayers:
    """First layers of the decoder that have to stay.

    Args:
        as_many_as: A config list with one entry for each of these layers, written as keys with dots between them.
        reason: Why they have to stay.
    """

    as_many_as: str
    reason: str


@dataclass(frozen=True)
class Composite:
    """A model of several parts, as its JSON file gives it.

    Args:
        model_type: The `model_type` of the configs that it describes.
        models: Well-known models of it, for the support table.
        text_config: Config key of the decoder's config. In a flat config, without this key, the decoder's keys are
            beside the others.
        prefixes: What the names of the decoder's tensors begin with in its own description, and what in this model.
        text_parts: Decoders by `model_type`, where they have no description of their own.
        repeats: Keys of the decoder's config that the outer config repeats, where it has them.
        first_layers: First layers that have to stay; None where any layer can go.
        attention: Implementation of the decoder's attention to run it with; None for the usual one. A class may leave
            out the mask of a text without an image, and the usual one then reads it in both directions.
        ignored: Names of stored tensors that are not parameters, with `*` for indices.
        text_only: Why it is calibrated on text alone; None where rows with images are read as well.
        refused: Why models of this type cannot be cut; None where they can.
    """

    model_type: str
    models: str
    text_config: str = "text_config"
    prefixes: Mapping[str, str] = field(default_factory=dict)
    text_parts: Mapping[str, TextPart] = field(default_factory=dict)
    repeats: tuple[str, ...] = ()
    first_layers: FirstLayers | None = None
    attention: str | None = None
    ignored: tuple[str, ...] = ()
    text_only: str | None = None
    refused: str | None = None

    @classmethod
    def from_json(cls, path: Path) -> Composite:
        """Read the description of a composite.

        Raises:
            ArchitectureError: The file is none; the message names the entry.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            allowed = {entry.name for entry in fields(cls)}
            for key in data:
                if key not in allowed:
                    raise ValueError(unknown_name("entry", key, allowed))
            first = data.get("first_layers")
            return cls(
                model_type=data["model_type"],
                models=data["models"],
                text_config=data.get("text_config", "text_config"),
                prefixes=data.get("prefixes", {}),
                text_parts={name: TextPart(**entry) for name, entry in data.get("text_parts", {}).items()},
                repeats=tuple(data.get("repeats", ())),
                first_layers=first and FirstLayers(**first),
                attention=data.get("attention"),
                ignored=tuple(data.get("ignored", ())),
                text_only=data.get("text_only"),
                refused=data.get("refused"),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            detail = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ArchitectureError(f"{path} is not the description of a composite: {detail}") from None

    def describe_text(self, model_type: str) -> Description:
        """Return the description of the decoder, with the names that its tensors have in this model.

        Args:
            model_type: The decoder's own.

        Raises:
            ArchitectureError: It is not described.
        """
        part = self.text_parts.get(model_type, TextPart(model_type))
        try:
            description = describe(part.described_as)
        except ArchitectureError:
            raise ArchitectureError(
                f"the text part of {self.model_type!r} is of type {part.described_as!r}, which is not described; "
                "describe it in a JSON file (docs/how-to/add-an-architecture.md) and pass it with --architecture, or "
                "shrink a model of another family"
            ) from None
        dimensions = {
            **description.dimensions,
            **{key: Dimension({}, fixed=reason) for key, reason in part.fixed.items()},
        }
        moved = replace(
            description, **{entry.name: self._moved(getattr(description, entry.name)) for entry in fields(description)}
        )
        return replace(
            moved,
            model_type=self.model_type,
            models=self.models,
            dimensions=dimensions,
            ignored=(*moved.ignored, *self.ignored),
            class_change=None,  # the class of a part is not the model's to choose
        )

    def carried(self, names: Iterable[str]) -> frozenset[str]:
        """Return which of a model's tensors belong to its other parts.

        Args:
            names: The names of all tensors.
        """
        return frozenset(name for name in names if not name.startswith(tuple(self.prefixes.values())))

    def text_values(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the part of a config.json that holds the decoder's keys.

        Args:
            raw: The contents of the config.json.
        """
        inner = raw.get(self.text_config)
        return inner if isinstance(inner, Mapping) else raw

    def with_text_values(self, raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the contents of config.json with changed keys of the decoder, wherever they are repeated.

        Args:
            raw: The contents of the config.json.
            values: New values by key of the decoder's config.
        """
        edited = dict(raw)
        inner = raw.get(self.text_config)
        if not isinstance(inner, Mapping):
            return {**edited, **values}
        edited[self.text_config] = {**inner, **values}
        changed = (key for key in self.repeats if key in values and values[key] != inner.get(key))
        edited.update({key: values[key] for key in changed if key in raw})
        return edited

    def count_first_layers(self, raw: Mapping[str, Any]) -> int:
        """Return how many of the first layers have to stay.

        Args:
            raw: The config, with the defaults of its class.
        """
        if self.first_layers is None:
            return 0
        value: Any = raw
        for key in self.first_layers.as_many_as.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return len(value or ())

    def _moved(self, value: Any) -> Any:
        """Return an entry of a description with the names of tensors in it as they are in this model."""
        if isinstance(value, str):
            own = next((own for own in self.prefixes if value.startswith(own)), "")
            return self.prefixes[own] + value.removeprefix(own) if own else value
        if isinstance(value, Mapping):
            return {self._moved(key): self._moved(inner) for key, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(self._moved(inner) for inner in value)
        return value


@cache
def composites() -> Mapping[str, Composite]:
    """Return every composite that ships with the package, by `model_type`."""
    found = (Composite.from_json(path) for path in sorted((Path(__file__).parent / "composites").glob("*.json")))
    return {composite.model_type: composite for composite in found}


def composite_of(raw: Mapping[str, Any]) -> Composite | None:
    """Return the description of a model of several parts, or None where the model is a plain decoder.

    Args:
        raw: The contents of config.json.

    Raises:
        ArchitectureError: The model has several parts and is not described, or cannot be cut.
    """
    model_type = str(raw.get("model_type"))
    known = composites().get(model_type)
    parts = sorted(key for key, value in raw.items() if key.endswith("_config") and isinstance(value, dict))
    if known is None and PART_KEYS & set(parts):
        raise ArchitectureError(
            f"{model_type!r} combines several models ({', '.join(parts)}), and which of its tensors are the text "
            "part's is not described; use a checkpoint of its text decoder alone, or one of these: "
            f"{', '.join(name for name, each in composites().items() if each.refused is None)}"
        )
    if known is not None and known.refused is not None:
        raise ArchitectureError(f"{model_type!r} cannot be cut: {known.refused}; shrink a model of another family")
    return known


def text_values(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys of a config.json that describe its decoder: of a plain model all of them.

    Args:
        raw: The contents of config.json.
    """
    composite = composites().get(str(raw.get("model_type")))
    return raw if composite is None else composite.text_values(raw)


def with_text_values(raw: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of config.json with changed keys of its decoder.

    Args:
        raw: The contents of config.json.
        values: New values by key.
    """
    composite = composites().get(str(raw.get("model_type")))
    return {**raw, **values} if composite is None else composite.with_text_values(raw, values)


def check_alone(raw: Mapping[str, Any], name: str, what: str, instead: str) -> None:
    """Check that a model is a text decoder alone, without a vision tower or other parts.

    Args:
        raw: The contents of its config.json.
        name: What it is called.
        what: What takes such a model alone.
        instead: What to do with another one.

    Raises:
        RequestError: It has other parts.
    """
    if raw.get("model_type") in composites():
        raise RequestError(
            f"{what} takes a text decoder alone, and {name} ({raw['model_type']}) has other parts; {instead}"
        )


def check_reads_images(raw: Mapping[str, Any], name: str) -> None:
    """Check that a model can be calibrated on rows with images.

    Args:
        raw: The contents of its config.json.
        name: What it is called.

    Raises:
        RequestError: It cannot.
    """
    composite = composites().get(str(raw.get("model_type")))
    if composite is None:
        raise RequestError(f"{name} reads text alone, and the calibration has images; give rows of text")
    if composite.text_only is not None:
        raise RequestError(
            f"{name} ({composite.model_type}) cannot be calibrated on rows with images: {composite.text_only}; "
            "give rows of text"
        )


def loading_options(model_type: str) -> dict[str, Any]:
    """Return what `from_pretrained` is given so that a model runs on text as its config says.

    Args:
        model_type: That of its config.
    """
    composite = composites().get(model_type)
    if composite is None or composite.attention is None:
        return {}
    return {"attn_implementation": {composite.text_config: composite.attention}}


def is_composite(config: Any) -> bool:
    """Whether a config is that of a model of several parts.

    Args:
        config: A `PreTrainedConfig`.
    """
    return config.model_type in composites()


def text_config(config: Any) -> Any:
    """Return the config of a model's decoder; of a plain model the config itself.

    Whether the head is tied is the outer config's to say, and the dtype where the decoder's has none.

    Args:
        config: A `PreTrainedConfig`.
    """
    if not is_composite(config):
        return config
    text = deepcopy(config.get_text_config(decoder=True))
    text.tie_word_embeddings = config.tie_word_embeddings
    if getattr(text, "dtype", None) is None:
        text.dtype = config.dtype
    return text
