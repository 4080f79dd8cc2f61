"""The stage that scores: the importance of each unit and layer, and which layers to retain."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from ..architectures.binding import Binding
from ..architectures.composite import check_reads_images
from ..architectures.description import EXPERTS, LAYERS, ROWS, TOP_K
from ..architectures.layer_order import LayerRule
from ..checkpoint.fingerprint import model_fingerprint
from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..core.cache import cache_folder
from ..core.device import dtype_name
from ..core.digest import tensor_digest
from ..core.processes import from_main_process, is_main_process
from ..core.progress import note
from ..core.version import __version__
from ..text.calibration import Calibration
from .batches import Batches
from .criterion import EXPERT_CRITERIA, LAYER_CRITERIA, UNIT_CRITERIA, Criterion
from .engine import score_model
from .layer_selection import allows, choose_greedily, choose_span, removable_spans, spans_with, summed_costs
from .options import ImportanceOptions
from .removal import score_spans
from .score_cache import ScoreCache
from .units import units_to_score
from .weights import score_weights

SUMMED_UNITS = ("num_key_value_heads", "intermediate_size")
"""The kinds of units that `unit_scores` criteria sum up; query heads are part of their KV group."""


_UNITS = ("num_key_value_heads", "num_attention_heads", "intermediate_size")
"""Dimensions that the unit criterion scores."""


def score(
    session: Session, options: ImportanceOptions, calibration: Calibration, keys: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Score the dimensions that change.

    A criterion that needs only weights reads them tensor by tensor, without loading the model.

    Args:
        session: The run.
        options: How to score.
        calibration: The text to score on.
        keys: Config keys of those dimensions.
    """
    source = session.source
    layer = LAYER_CRITERIA[options.layer_importance]
    of_units = check_scoring(source.binding, options, keys)  # raises before the model is loaded
    wanted = [*of_units, *(key for key in keys if key == EXPERTS or (key == LAYERS and layer.needs != "unit_scores"))]
    cache = _RunCache(session, options, calibration)
    scores = {key: found for key in wanted if (found := cache.read(_criterion_of(options, key), key)) is not None}
    missing = [key for key in wanted if key not in scores]
    for key, values in _compute(session, options, calibration, missing).items():
        scores[key] = values
        cache.write(_criterion_of(options, key), key, values)
    if LAYERS in keys and layer.needs == "unit_scores":
        scores[LAYERS] = layer.function(*(scores[key] for key in SUMMED_UNITS))
    return {key: scores[key] for key in keys}


def check_calibration(calibration: Calibration, source: Source) -> None:
    """Check that the calibration text can be read, and that the model reads its images, where it has any.

    Args:
        calibration: The text.
        source: The model.

    Raises:
        DataError: A source cannot be read, or an image is missing.
        RequestError: There are images, and the model cannot be calibrated on them.
    """
    if calibration.has_images:
        check_reads_images(source.raw_config, source.display_name)
    for text in calibration.sources:
        text.check(images=True)


def _criterion_of(options: ImportanceOptions, key: str) -> Criterion:
    """Return the criterion that scores a dimension."""
    if key == LAYERS:
        return LAYER_CRITERIA[options.layer_importance]
    return EXPERT_CRITERIA[options.expert_importance] if key == EXPERTS else UNIT_CRITERIA[options.importance]


def check_scoring(binding: Binding, options: ImportanceOptions, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the dimensions whose units are scored, once it is known that they can be.

    Args:
        binding: The model.
        options: How to score.
        keys: Config keys of the dimensions that change.

    Raises:
        RequestError: The criterion cannot see into experts, or the groups do not divide the neurons.
    """
    of_units = tuple(key for key in keys if key not in (EXPERTS, LAYERS))
    if LAYERS in keys and LAYER_CRITERIA[options.layer_importance].needs == "unit_scores":
        of_units = (*of_units, *(key for key in SUMMED_UNITS if key not in of_units))
    units_to_score(binding, UNIT_CRITERIA[options.importance], of_units, options.importance_group_size)
    return of_units


def _compute(
    session: Session, options: ImportanceOptions, calibration: Calibration, missing: Collection[str]
) -> dict[str, torch.Tensor]:
    """Score dimensions: from weights tensor by tensor, and everything else together on the loaded model.

    Args:
        session: The run.
        options: How to score.
        calibration: The text to score on.
        missing: Config keys of the dimensions.
    """
    source = session.source
    size = options.importance_group_size
    scores: dict[str, torch.Tensor] = {}
    criteria = {key: _criterion_of(options, key) for key in missing}
    from_weights = [key for key, criterion in criteria.items() if criterion.needs == "weights"]
    for kind in (_UNITS, (EXPERTS,), (LAYERS,)):
        if keys := tuple(key for key in from_weights if key in kind):
            scores.update(score_weights(source.tensors, source.binding, criteria[keys[0]], keys, group_size=size))
    rest = tuple(key for key in missing if key not in scores)
    if rest:
        units = any(key in _UNITS for key in rest)
        with calibration.shown_to(session.model):
            scores.update(
                score_model(
                    session.model,
                    source.binding,
                    calibration.windows[: options.importance_samples],
                    UNIT_CRITERIA[options.importance] if units else None,
                    criteria[LAYERS] if LAYERS in rest else None,
                    rest,
                    expert_criterion=criteria[EXPERTS] if EXPERTS in rest else None,
                    batch_size=options.batch_windows,
                    grows=options.batch_size is None,
                    group_size=size,
                    seed=options.seed,
                )
            )
    return scores


class _RunCache:
    """The score cache as one run reads and writes it. Notes say when scores come from it, and why they do not."""

    def __init__(self, session: Session, options: ImportanceOptions, calibration: Calibration) -> None:
        self.session = session
        self.options = options
        self.calibration = calibration

    @cached_property
    def _cache(self) -> ScoreCache:
        return ScoreCache(cache_folder() / model_fingerprint(self.session.source))

    @cached_property
    def _calibration(self) -> dict[str, Any]:
        """Everything that the calibration windows depend on, besides the model."""
        options, sources = self.options, self.calibration.sources
        prints = [source.fingerprint() for source in sources]
        unknown = any(mark is None and not source.is_self for mark, source in zip(prints, sources, strict=True))
        # A data set can change under the same name: then the windows themselves are the key.
        windows = self.calibration.windows[: options.importance_samples] if unknown else None
        begins_with = self.calibration.begins_with
        return {
            **({"begins_with": begins_with} if begins_with else {}),
            "calibration": [mark or source.text for mark, source in zip(prints, sources, strict=True)],
            **({"images": self.calibration.images_digest} if self.calibration.has_images else {}),
            "calibration_samples": options.calibration_samples,
            "calibration_length": options.calibration_length,
            "importance_samples": min(options.importance_samples, options.calibration_samples),
            "windows": None if windows is None else tensor_digest(windows),
            "batch_size": options.batch_windows,
            "seed": options.seed,
            "dtype": dtype_name(self.session.dtype),
            "device": self.session.device.type,
        }

    def _key(self, criterion: Criterion, key: str) -> dict[str, Any]:
        return {
            "criterion": criterion.name,
            "dimension": key,
            "version": __version__,
            "torch": torch.__version__,
            "importance_group_size": None if key in (EXPERTS, LAYERS) else self.options.importance_group_size,
            **(self._calibration if criterion.reads_text else {}),
        }

    def read(self, criterion: Criterion, key: str) -> torch.Tensor | None:
        """Return the cached scores of a dimension, or None."""
        if not self._used(criterion):
            return None
        wanted = self._key(criterion, key)
        # One process reads for all, so that all take the same branch from here on.
        found: torch.Tensor | None = from_main_process(self._cache.read(wanted) if is_main_process() else None)
        if found is not None:
            note(f"{criterion.name} of {key}: read from the cache ({self._cache.folder})")
        elif changed := self._cache.differences(wanted):
            note(f"{criterion.name} of {key}: scored again, because {', '.join(changed)} changed")
        return found

    def write(self, criterion: Criterion, key: str, scores: torch.Tensor) -> None:
        """Cache the scores of a dimension."""
        if self._used(criterion) and is_main_process():
            self._cache.write(self._key(criterion, key), scores)

    def _used(self, criterion: Criterion) -> bool:
        # Criteria that read only the weights take no longer than the hash that a key needs.
        return self.options.score_cache and criterion.needs != "weights"


def select_layers(
    session: Session,
    options: ImportanceOptions,
    calibration: Calibration,
    scores: Mapping[str, torch.Tensor],
    count: int,
    removable: range,
    order: LayerRule | None = None,
    gone: Collection[int] = (),
) -> tuple[int, ...] | None:
    """Return the retained layers where their choice needs more than one score each, else None.

    None means that the highest scored layers are retained.

    Args:
        session: The run.
        options: How to score and select.
        calibration: The text to score on.
        scores: What `score` returned.
        count: Layers of the result.
        removable: The layers that can be removed.
        order: The order that the retained layers must come in; None for any. It is left out of account where no
            layers come in it.
        gone: Layers that are removed in any case, which a larger model of the same family has lost.

    Raises:
        ShapeError: Spans are removed, and none of this length has all of `gone`.
    """
    binding = session.source.binding
    total = binding.shape[LAYERS]
    if count == total or options.layer_selection == "one-shot":
        return None
    criterion = LAYER_CRITERIA[options.layer_importance]

    def measure(spans: Sequence[tuple[int, int]], without: tuple[int, ...] = ()) -> torch.Tensor:
        windows = calibration.windows[: options.importance_samples]
        grows = options.batch_size is None
        batches = Batches(windows, None, options.batch_windows, session.model.device, grows)
        with calibration.shown_to(session.model):
            return score_spans(session.model, binding, batches, criterion, spans, without)

    if options.layer_selection == "greedy":

        def score_again(remaining: Sequence[int], removed: tuple[int, ...]) -> torch.Tensor:
            return measure([(layer, layer + 1) for layer in remaining], removed)

        return choose_greedily(scores[LAYERS], score_again, count, removable, order, gone)
    spans = spans_with(gone, removable_spans(total - count, removable))
    spans = [span for span in spans if allows(order, range(*span), total, removable)] or spans
    costs = measure(spans) if criterion.measures_removal else summed_costs(scores[LAYERS], spans)
    return choose_span(costs, spans, total)


def used_criteria(options: ImportanceOptions, scored: Iterable[str]) -> dict[str, Criterion]:
    """Return the criteria that were used: any of `unit`, `expert` and `layer`.

    Args:
        options: How units and layers are scored.
        scored: Config keys of the dimensions that were scored.
    """
    keys = set(scored)
    used = {}
    if LAYERS in keys:
        used["layer"] = LAYER_CRITERIA[options.layer_importance]
    summed = "layer" in used and used["layer"].needs == "unit_scores"
    if summed or keys.intersection(_UNITS):
        used["unit"] = UNIT_CRITERIA[options.importance]
    if EXPERTS in keys:
        used["expert"] = EXPERT_CRITERIA[options.expert_importance]
    return used


def reads_text(options: ImportanceOptions, scored: Iterable[str]) -> bool:
    """Return whether scoring reads calibration text.

    Args:
        options: How units and layers are scored.
        scored: Config keys of the dimensions to score.
    """
    return any(criterion.reads_text for criterion in used_criteria(options, scored).values())


def scored_dimensions(before: Mapping[str, int], after: Mapping[str, int], *, merge: bool) -> list[str]:
    """Return the config keys of the dimensions that need scores.

    Args:
        before: The model's shape.
        after: The new shape.
        merge: Whether KV heads are merged: then none of them is removed.
    """
    kv, heads = "num_key_value_heads", "num_attention_heads"
    # The tokens of a vocabulary are chosen by their counts, and routing to fewer experts removes nothing.
    changed = [key for key in before if key not in (kv, heads, ROWS, TOP_K) and after[key] < before[key]]
    if after[kv] < before[kv] and not merge:
        changed.append(kv)
    available = before[heads] if merge else after[kv] * (before[heads] // before[kv])
    if after[heads] < available:
        changed.append(heads)
    return changed
