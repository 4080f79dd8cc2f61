"""Scores of what changes, and the layers that they leave: importance as one run asks for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from ..checkpoint.fingerprint import model_fingerprint
from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..core.device import dtype_name
from ..core.digest import tensor_digest
from ..core.processes import from_main_process, is_main_process
from ..core.progress import note
from ..core.version import __version__
from ..text.sources import parse_sources
from .batches import Batches
from .criterion import LAYER_CRITERIA, UNIT_CRITERIA, Criterion
from .engine import score_model
from .layer_selection import choose_greedily, choose_span, removable_spans, summed_costs
from .removal import score_spans
from .score_cache import ScoreCache, cache_folder
from .units import LAYERS as LAYERS
from .units import units_to_score
from .weights import score_weights

SUMMED_UNITS = ("num_key_value_heads", "intermediate_size")
"""The units that a layer's score is the sum of; query heads are part of their KV group."""


def score(session: Session, keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """Score the dimensions that change.

    A criterion that needs only weights reads them tensor by tensor: then the model is never loaded.

    Args:
        session: The run.
        keys: Config keys of those dimensions.
    """
    config, source = session.config, session.source
    unit, layer = UNIT_CRITERIA[config.importance], LAYER_CRITERIA[config.layer_importance]
    of_layers = tuple(key for key in keys if key == LAYERS)
    of_units = tuple(key for key in keys if key != LAYERS)
    if of_layers and layer.needs == "unit_scores":
        of_units = (*of_units, *(key for key in SUMMED_UNITS if key not in of_units))
    units_to_score(source.binding, unit, of_units, config.importance_group_size)  # refused before the model is loaded
    wanted = [(unit, key) for key in of_units]
    wanted += [(layer, key) for key in of_layers if layer.needs != "unit_scores"]
    kept = _Kept(session)
    scores = {key: found for criterion, key in wanted if (found := kept.read(criterion, key)) is not None}
    missing = [key for _, key in wanted if key not in scores]
    for key, values in _score_anew(session, unit, layer, missing).items():
        scores[key] = values
        kept.write(layer if key == LAYERS else unit, key, values)
    if of_layers and layer.needs == "unit_scores":
        scores[LAYERS] = layer.function(*(scores[key] for key in SUMMED_UNITS))
    return {key: scores[key] for key in keys}


def _score_anew(
    session: Session, unit: Criterion, layer: Criterion, missing: Collection[str]
) -> dict[str, torch.Tensor]:
    """Score dimensions: by weights tensor by tensor, by everything else on the loaded model, in one go.

    Args:
        session: The run.
        unit: Criterion for units.
        layer: Criterion for layers.
        missing: Config keys of the dimensions.
    """
    config, source = session.config, session.source
    keys = {
        True: tuple(key for key in missing if key == LAYERS),
        False: tuple(key for key in missing if key != LAYERS),
    }
    scores: dict[str, torch.Tensor] = {}
    for of_layers, criterion in ((False, unit), (True, layer)):
        if keys[of_layers] and criterion.needs == "weights":
            size = config.importance_group_size
            scores.update(score_weights(source.tensors, source.binding, criterion, keys[of_layers], group_size=size))
            keys[of_layers] = ()
    if keys[True] or keys[False]:
        scores.update(
            score_model(
                session.model,
                source.binding,
                session.importance_windows,
                unit if keys[False] else None,
                layer if keys[True] else None,
                (*keys[False], *keys[True]),
                batch_size=config.batch_size,
                group_size=config.importance_group_size,
                seed=config.seed,
            )
        )
    return scores


class _Kept:
    """The cache of scores as one run reads and writes it. It says when scores are taken from it, and why not."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @cached_property
    def _cache(self) -> ScoreCache:
        return ScoreCache(cache_folder() / model_fingerprint(self.session.source))

    @cached_property
    def _calibration(self) -> dict[str, Any]:
        """Everything that the calibration windows depend on, besides the model."""
        config = self.session.config
        sources = parse_sources(config.calibration)
        prints = [source.fingerprint() for source in sources]
        drawn = any(mark is None and not source.is_self for mark, source in zip(prints, sources, strict=True))
        # A data set can change behind its name: then the windows themselves are the key.
        windows = self.session.importance_windows if drawn else None
        return {
            "calibration": [mark or source.text for mark, source in zip(prints, sources, strict=True)],
            "calibration_samples": config.calibration_samples,
            "calibration_length": config.calibration_length,
            "importance_samples": min(config.importance_samples, config.calibration_samples),
            "windows": None if windows is None else tensor_digest(windows),
            "batch_size": config.batch_size,
            "seed": config.seed,
            "dtype": dtype_name(self.session.dtype),
            "device": self.session.device.type,
        }

    def _key(self, criterion: Criterion, key: str) -> dict[str, Any]:
        return {
            "criterion": criterion.name,
            "dimension": key,
            "version": __version__,
            "torch": torch.__version__,
            "importance_group_size": None if key == LAYERS else self.session.config.importance_group_size,
            **(self._calibration if criterion.reads_text else {}),
        }

    def read(self, criterion: Criterion, key: str) -> torch.Tensor | None:
        """Return the scores of a dimension that were kept, or None."""
        if not self._used(criterion):
            return None
        wanted = self._key(criterion, key)
        # One process looks for all: they have to take the same way from here.
        found: torch.Tensor | None = from_main_process(self._cache.read(wanted) if is_main_process() else None)
        if found is not None:
            note(f"{criterion.name} of {key}: taken from the cache ({self._cache.folder})")
        elif changed := self._cache.differences(wanted):
            note(f"{criterion.name} of {key}: scored again, since {', '.join(changed)} changed")
        return found

    def write(self, criterion: Criterion, key: str, scores: torch.Tensor) -> None:
        """Keep the scores of a dimension."""
        if self._used(criterion) and is_main_process():
            self._cache.write(self._key(criterion, key), scores)

    def _used(self, criterion: Criterion) -> bool:
        # What only reads the weights once takes no longer than the hash that a key needs.
        return self.session.config.score_cache and criterion.needs != "weights"


def select_layers(
    session: Session, shape: Mapping[str, int], scores: Mapping[str, torch.Tensor]
) -> tuple[int, ...] | None:
    """Return the layers that stay where that takes more than one score for each; None where the highest scored stay.

    Args:
        session: The run.
        shape: The complete new shape.
        scores: What `score` returned.
    """
    config, binding = session.config, session.source.binding
    total, count = binding.shape[LAYERS], shape[LAYERS]
    if count == total or config.layer_selection == "one-shot":
        return None
    criterion = LAYER_CRITERIA[config.layer_importance]
    protection = config.request.protection(total)

    def measure(spans: Sequence[tuple[int, int]], without: tuple[int, ...] = ()) -> torch.Tensor:
        batches = Batches(session.importance_windows, None, config.batch_size, session.model.device)
        return score_spans(session.model, binding, batches, criterion, spans, without)

    if config.layer_selection == "greedy":

        def score_again(left: Sequence[int], gone: tuple[int, ...]) -> torch.Tensor:
            return measure([(layer, layer + 1) for layer in left], gone)

        return choose_greedily(scores[LAYERS], score_again, count, *protection)
    spans = removable_spans(total, count, *protection)
    costs = measure(spans) if criterion.measures_removal else summed_costs(scores[LAYERS], spans)
    return choose_span(costs, spans, total)


def used_criteria(config: IShrinkConfig, scored: Iterable[str]) -> dict[str, Criterion]:
    """Return the criteria that chose something: `unit`, `layer`, both or none.

    Args:
        config: The run's config.
        scored: Config keys of the dimensions that were scored.
    """
    keys = set(scored)
    used = {}
    if LAYERS in keys:
        used["layer"] = LAYER_CRITERIA[config.layer_importance]
    summed = "layer" in used and used["layer"].needs == "unit_scores"
    if summed or keys & {"num_key_value_heads", "num_attention_heads", "intermediate_size"}:
        used["unit"] = UNIT_CRITERIA[config.importance]
    return used


def scored_dimensions(before: Mapping[str, int], after: Mapping[str, int], *, merge: bool) -> list[str]:
    """Return the config keys of the dimensions in which something has to be chosen.

    Args:
        before: The model's shape.
        after: The new shape.
        merge: Whether KV heads are merged: then none of them is chosen to go.
    """
    kv, heads = "num_key_value_heads", "num_attention_heads"
    changed = [key for key in before if key not in (kv, heads) and after[key] < before[key]]
    if after[kv] < before[kv] and not merge:
        changed.append(kv)
    available = before[heads] if merge else after[kv] * (before[heads] // before[kv])
    if after[heads] < available:
        changed.append(heads)
    return changed
