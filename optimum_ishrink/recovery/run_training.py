"""The training of a prepared student: its model, its teacher, text of its own, compiled layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

from ..checkpoint.loading import load_model
from ..modeling.compiled_layers import compiled_layers
from .device_use import training_operations, with_device_use
from .exported_weights import ExportedValues
from .mixed_teacher import MixedTeacher
from .on_policy import StudentText
from .preparation import Preparation
from .sharding import loading_device, shares_weights
from .teacher_cache import CachedTeacher
from .teacher_choice import choose_teacher
from .teacher_models import layer_names
from .training import Trained, train
from .translating_teacher import TranslatingTeacher


def train_prepared(
    prepared: Preparation,
    *,
    solved: Mapping[str, torch.Tensor] | None = None,
    start: Mapping[str, torch.Tensor] | None = None,
    sparse: Sequence[str] = (),
    exported: ExportedValues | None = None,
) -> Trained:
    """Train a prepared student, or resume an unfinished training of it.

    Args:
        prepared: What `prepare` returned.
        solved: Weights that replace the student's before the training, by their names in its checkpoint.
        start: What an adapter adds to weights at the start, by their names.
        sparse: Names of the student's parameters, as it is loaded, whose zeros stay.
        exported: What an export will hold of the result, where that is to be trained.

    Raises:
        TrainingError: The training stopped before its end; the same command resumes it.
        OutputError: There is no room for a checkpoint.
    """
    options, models, session = prepared.options, prepared.models, prepared.session
    compares_layers = options.reads("hidden_states") or options.reads("values")
    pair, teachers = prepared.pair, prepared.teachers
    stored = prepared.teacher_cache
    teacher = choose_teacher(
        teachers.in_step if stored is None else teachers.all_whole,
        options,
        prepared.text,
        stored,
        prepared.micro,
        None if pair is None else pair.map,
        device=session.device,
    )
    live = teacher is not None and not isinstance(teacher, CachedTeacher)
    if not live or shares_weights():
        teachers.release()  # whoever needs the base later reads it again
    model = load_model(models.student.folder, session.dtype, loading_device(session.device))
    on_policy = None
    if options.recovery_on_policy:
        told = teacher if isinstance(teacher, TranslatingTeacher | MixedTeacher) and pair is not None else None
        on_policy = StudentText(options, prepared.text, prepared.tokenizer, pair=pair, teacher=told)
    with ExitStack() as stack:
        if options.torch_compile:
            sources = (models.student, *teachers.sources)
            for each, source in zip((model, *(teachers.in_step() if live else ())), sources, strict=False):
                stack.enter_context(compiled_layers(each, layer_names(source)))
        trained = train(
            model,
            teacher,
            prepared.text,
            options,
            prepared.work,
            device=session.device,
            layers=models.layers,
            layer_map=models.layer_map() if compares_layers else None,
            start=start,
            solved=solved,
            exported=exported,
            micro=prepared.micro,
            sparse=sparse,
            on_policy=on_policy,
        )
    operations = training_operations(
        options,
        models.student,
        teachers.sources if live else (),
        trained.parameters,
        models.layers,
        trained.record.trained_parameters,
    )
    return replace(trained, record=with_device_use(trained.record, operations, session.device, session.dtype))
