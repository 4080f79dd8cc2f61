"""The choice of a teacher: a model that runs beside the student, or its stored predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.micro_batch import MicroBatch
from ..modeling.head import Head
from ..text.token_map import TokenMap
from .mixed_teacher import MixedTeacher
from .options import RecoveryOptions
from .process_state import process_state
from .teacher import LiveTeacher, Teacher
from .teacher_cache import CachedTeacher, write_teacher_cache
from .trainer import MEMORY_REMEDY
from .training_text import RecoveryText
from .translating_teacher import TranslatingTeacher


def choose_teacher(
    load: Callable[[], Sequence[Any]],
    options: RecoveryOptions,
    text: RecoveryText,
    cache: Path | None,
    batch_size: int,
    tokens: TokenMap | None = None,
    *,
    device: torch.device,
) -> Teacher | None:
    """Return the teacher: its model, or its stored predictions.

    Args:
        load: Returns the models of the teachers; called in each process that runs them.
        options: The recovery's options.
        text: The recovery text.
        cache: Folder of the stored predictions; the first process fills it when it does not exist. None to run
            the models on every batch.
        batch_size: Windows run at once.
        tokens: How the teachers' tokens correspond to the student's; None where they are the same.
        device: Where to compute.
    """
    if not options.needs_teacher:
        return None
    inside = options.reads("hidden_states") or options.reads("values")
    if cache is None or options.recovery_top_k is None or inside:
        return _live(load(), options, text, tokens)
    state = process_state(device)
    if state.is_main_process and not cache.is_dir():
        models = load()
        teacher = _live(models, options, text, tokens)
        assert teacher is not None, "losses that compare with a teacher have one"
        most = None if options.batch_size else len(text.input_ids)
        micro = MicroBatch(batch_size, device, what="the teacher", remedy=MEMORY_REMEDY, most=most)
        write_teacher_cache(cache, teacher, text.input_ids, micro=micro, rows=Head(models[-1]).rows)
    state.wait_for_everyone()
    return CachedTeacher(cache, None if text.teacher is None else text.teacher.shared)


def _live(
    models: Sequence[Any], options: RecoveryOptions, text: RecoveryText, tokens: TokenMap | None
) -> LiveTeacher | TranslatingTeacher | MixedTeacher | None:
    """Return the teacher that runs its models, or None without any."""
    k, temperature = options.recovery_top_k, options.recovery_temperature
    reads = {"layers": options.reads("hidden_states"), "values": options.reads("values")}
    found: list[LiveTeacher | TranslatingTeacher] = []
    for model in models:
        # Of several the top k is that of the mixture.
        each = None if len(models) > 1 else k
        live = LiveTeacher(model, logits=options.reads("logits"), k=each, temperature=temperature, **reads)
        if tokens is None or text.teacher is None:
            found.append(live)
        else:
            found.append(TranslatingTeacher(live, text.teacher, tokens))
    if len(found) < 2:
        return found[0] if found else None
    return MixedTeacher(found, [named.weight for named in options.teachers], k=k, temperature=temperature)
