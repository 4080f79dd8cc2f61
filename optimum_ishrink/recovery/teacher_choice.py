"""The choice of a teacher: a model that runs beside the student, or its stored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.micro_batch import MicroBatch
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
    model: Any,
    options: RecoveryOptions,
    text: RecoveryText,
    cache: Path | None,
    batch_size: int,
    tokens: TokenMap | None = None,
    more: Sequence[Any] = (),
) -> Teacher | None:
    """Return the teacher: the model itself, or its stored predictions.

    Args:
        model: The teacher's model, or None.
        options: The recovery's options.
        text: The recovery text.
        cache: Folder of the stored predictions; the first process fills it when it does not exist. None to run
            the model on every batch.
        batch_size: Windows run at once.
        tokens: How the teacher's tokens correspond to the student's; None where they are the same.
        more: The models of further teachers, with the tokens of the first.
    """
    if model is None or not options.needs_teacher:
        return None
    k, temperature = options.recovery_top_k, options.recovery_temperature
    reads = {"layers": options.reads("hidden_states"), "values": options.reads("values")}
    found: list[LiveTeacher | TranslatingTeacher] = []
    for each in (model, *more):
        # Of several the top k is that of the mixture.
        live = LiveTeacher(
            each, logits=options.reads("logits"), k=None if more else k, temperature=temperature, **reads
        )
        if tokens is None or text.teacher is None:
            found.append(live)
        else:
            found.append(TranslatingTeacher(live, text.teacher, tokens))
    teacher: LiveTeacher | TranslatingTeacher | MixedTeacher = found[0]
    if more:
        weights = [named.weight for named in options.teachers]
        teacher = MixedTeacher(found, weights, k=k, temperature=temperature)
    if cache is None or k is None or any(reads.values()):
        return teacher
    state = process_state(model.device)
    if state.is_main_process and not cache.is_dir():
        most = None if options.batch_size else len(text.input_ids)
        micro = MicroBatch(batch_size, model.device, what="the teacher", remedy=MEMORY_REMEDY, most=most)
        write_teacher_cache(cache, teacher, text.input_ids, micro=micro, rows=live.head.rows)
    state.wait_for_everyone()
    return CachedTeacher(cache, None if text.teacher is None else text.teacher.shared)
