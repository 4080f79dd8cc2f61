"""The plan: which layers and units are retained, and how they were chosen. It does not change after planning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.json_codec import from_plain, rare_entry, to_plain
from .files import SCHEMA, read_schema
from .migration import migrate_plan
from .sparsity import SparsityPlan
from .tied_head import HeadRecord
from .vocabulary import VocabularyRecord


@dataclass(frozen=True)
class CalibrationRecord:
    """The text that importance and compensation read.

    Args:
        sources: Names of the texts.
        fingerprints: Fingerprints of the texts; None for a text that is not a file.
        samples: Number of windows.
        length: Tokens in a window.
        importance_samples: How many of these windows importance read.
        batch_size: Windows per forward pass.
        begins_with: The tokens that every window begins with; None where the tokenizer adds none to a text.
    """

    sources: tuple[str, ...]
    fingerprints: tuple[str | None, ...]
    samples: int
    length: int
    importance_samples: int
    batch_size: int
    begins_with: str | None = rare_entry()


@dataclass(frozen=True)
class Choice:
    """How the retained layers and units were chosen.

    Args:
        importance: Criterion for KV groups, query heads and neurons; None when none of them was scored.
        layer_importance: Criterion for layers; None when none was dropped.
        layer_selection: How layers were chosen by their scores; None when none was dropped.
        seed: Seed of everything random.
        calibration: The text that was read; None when no text was needed.
        expert_importance: Criterion for experts; None when none was dropped.
    """

    importance: str | None = None
    layer_importance: str | None = None
    layer_selection: str | None = None
    seed: int = 0
    calibration: CalibrationRecord | None = None
    expert_importance: str | None = rare_entry()


@dataclass(frozen=True)
class ExpertMerge:
    """The experts that one retained expert is made of.

    Args:
        experts: The retained expert, and after it those that are merged into it, ascending.
        shares: The weight of each in the mean, in the same order: how often the router picked it, as a share of how
            often it picked any of them. They add up to 1.
    """

    experts: tuple[int, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """Which layers and units are retained. Pure arithmetic: it does not depend on the weights.

    Args:
        model: Name or path of the source.
        revision: The source's commit, or None for a folder that has none.
        model_type: The architecture.
        shape: Config key to size, before.
        new_shape: Config key to size, after.
        layers: Indices of the retained layers, in order.
        units: For KV groups, query heads, experts and neurons, by config key: the retained indices in each layer of
            `layers`, no experts in a layer that has none. Neurons of experts are numbered consecutively, as in the
            source: expert `e`'s neuron `i` is `e * width + i`.
        config_changes: Config key to its values before and after; None before means that the key was absent.
        num_parameters: Parameters before.
        new_num_parameters: Parameters after.
        choice: How they were chosen: criteria, calibration, seed.
        merges: In each layer of `layers`, the KV heads that each new KV head is the mean of; None when none are
            merged.
        inexact: Why the result is not the original with the removed units at zero; empty when it is.
        vocabulary: Which rows of the vocabulary stay; None when all do.
        tied_head: How far the head is from the embedding, where quantisation explains it although the config does not
            tie the two, and whether it is tied now; None for other models.
        expert_merges: In each layer of `layers`, what each retained expert is made of, none in a layer that has no
            experts; None when experts are not merged.
        sparsity: Which matrices of the result have zeros, and how these are chosen; None where none were requested.
    """

    model: str
    revision: str | None
    model_type: str
    shape: Mapping[str, int]
    new_shape: Mapping[str, int]
    layers: tuple[int, ...]
    units: Mapping[str, tuple[tuple[int, ...], ...]]
    config_changes: Mapping[str, tuple[Any, Any]]
    num_parameters: int
    new_num_parameters: int
    choice: Choice
    merges: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    inexact: tuple[str, ...] = ()
    vocabulary: VocabularyRecord | None = rare_entry()  # noqa: RUF009 - a field
    tied_head: HeadRecord | None = rare_entry()  # noqa: RUF009 - a field
    expert_merges: tuple[tuple[ExpertMerge, ...], ...] | None = rare_entry()
    sparsity: SparsityPlan | None = rare_entry()  # noqa: RUF009 - a field

    @property
    def removed_share(self) -> float:
        """Share of the parameters that is removed, between 0 and 1."""
        return 1 - self.new_num_parameters / self.num_parameters

    def to_json(self) -> dict[str, Any]:
        """Return the plan as a JSON object."""
        return {"schema": SCHEMA, **to_plain(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Build a plan from its JSON object, of this schema or an older one.

        Raises:
            SourceError: It is not a plan, it is damaged, or a later version wrote it.
        """
        schema, values = read_schema(data, "plan")
        if schema == 1:
            values, _ = migrate_plan(values)
        return from_plain(cls, values, kind="plan")
