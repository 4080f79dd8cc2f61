"""Recovery of a checkpoint folder: what its result depends on, the training, and the weights that come of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.fingerprint import checkpoint_digest
from ..checkpoint.source import load_model, stored_names
from ..checkpoint.tensors import DTYPES, overwrite_tensor, read_index, read_tensor
from ..core.device import dtype_name
from ..core.digest import digest, tensor_digest
from ..core.durable import load_tensors, room_needed, save_tensors
from .self_text import own_words
from .settings import RecoverySettings
from .teacher import LayerMap
from .trainable import add_lora
from .training import Trained, choose_teacher, micro_batch, process_state, train
from .training_text import RecoveryText, recovery_text
from .work_folder import last_step, open_work

TEXT = "text.json"
ADAPTER = "adapter"


def request_of(
    folder: Path,
    teacher: Path | None,
    settings: RecoverySettings,
    dtype: torch.dtype,
    device: torch.device,
    plan: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return everything that a recovery's result depends on, as plain values.

    Args:
        folder: The student's checkpoint.
        teacher: The teacher's checkpoint, or None.
        settings: The recovery's settings.
        dtype: Compute dtype.
        device: Where to compute.
        plan: What was cut, or None.
    """
    values = asdict(settings)
    values["data"] = [[source.label, source.fingerprint()] for source in settings.data]
    del values["cache"]
    return {
        "model": checkpoint_digest(folder),
        "teacher": None if teacher is None else checkpoint_digest(teacher),
        "plan": None if plan is None else digest({key: plan[key] for key in ("new_shape", "layers", "units")}),
        **values,
        "dtype": dtype_name(dtype),
        "device": device.type,
        "processes": process_state(device).num_processes,
    }


def train_checkpoint(
    folder: Path,
    work: Path,
    settings: RecoverySettings,
    tokenizer: Any,
    *,
    teacher_folder: Path | None,
    load_teacher: Callable[[], Any],
    layers: tuple[str, ...],
    layer_map: Callable[[Any], LayerMap],
    start: Callable[[RecoveryText], Mapping[str, torch.Tensor]],
    solve: Callable[[RecoveryText], Mapping[str, torch.Tensor]],
    dtype: torch.dtype,
    device: torch.device,
    plan: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a checkpoint; the folder is only read.

    Args:
        folder: The student's checkpoint.
        work: The working folder; what is there of the same request is gone on with.
        settings: The recovery's settings.
        tokenizer: The student's tokenizer.
        teacher_folder: The teacher's checkpoint, or None.
        load_teacher: Gives the teacher's model.
        layers: Names of the modules of the student's layers.
        layer_map: Gives which of a teacher's layers each of them stands for.
        start: Gives what an adapter adds to weights at the start, for the text that is trained on.
        solve: Gives the weights that are solved anew before the training, for that text, in the checkpoint's dtypes.
        dtype: Compute dtype.
        device: Where to compute.
        plan: What was cut, or None.

    Raises:
        RequestError: The request cannot be met, or the working folder is another request's.
        DataError: The text cannot be used.
        TrainingError: The training stopped before its end.
        OutputError: There is no room.
    """
    state = process_state(device)
    micro = micro_batch(settings.batch_size, settings.micro_batch_size, state.num_processes)
    request = request_of(folder, teacher_folder, settings, dtype, device, plan)
    with state.main_process_first():
        open_work(work, request, write=state.is_main_process)
    teacher = load_teacher() if settings.needs_teacher_model else None
    cache = settings.cache or work
    teacher_digest = request["teacher"]

    def sample(count: int) -> torch.Tensor:
        drawn: list[Any] = [teacher_digest, count, settings.length, settings.seed, dtype_name(dtype), device.type]
        drawn += [settings.sampling_temperature, settings.sampling_filter]
        with state.main_process_first():
            return own_words(
                teacher,
                tokenizer,
                settings.length,
                count,
                seed=settings.seed,
                temperature=settings.sampling_temperature,
                dropped=settings.sampling_filter,
                cache=cache / f"self-{digest(drawn)}.safetensors",
            )

    text = recovery_text(
        settings.data,
        tokenizer,
        tokens=settings.tokens,
        length=settings.length,
        step=settings.batch_size,
        labels=settings.labels,
        seed=settings.seed,
        sample=sample,
    )
    of_text = tensor_digest(text.input_ids, text.labels)
    with state.main_process_first():
        open_work(work, {"text": of_text}, name=TEXT, write=state.is_main_process)
    known = None
    if settings.caches_teacher:
        said = [teacher_digest, of_text, settings.top_k, settings.temperature, dtype_name(dtype), device.type]
        known = cache / f"teacher-{digest(said)}"
    solved = None
    if settings.compensates:
        on = [request["model"], request["plan"], teacher_digest, of_text, settings.compensation]
        on += [settings.compensation_samples, dtype_name(dtype), device.type]
        path = cache / f"solved-{digest(on)}.safetensors"
        with state.main_process_first():
            if not path.is_file():
                save_tensors(path, solve(text))
        solved = load_tensors(path)
    resumes = last_step(work) is not None
    model = load_model(folder, dtype, device)
    return train(
        model,
        choose_teacher(teacher, settings, text, known, micro),
        text,
        settings,
        work,
        layers=layers,
        layer_map=layer_map(teacher) if settings.reads("hidden_states") or settings.reads("values") else None,
        start=start(text) if settings.uses_lora and settings.lora_start != "zero" and not resumes else None,
        solved=solved,
        micro=micro,
    )


def write_solved(folder: Path, trained: Trained) -> None:
    """Put the weights that were solved before the training into a checkpoint folder.

    Args:
        folder: The checkpoint, as it was solved from.
        trained: What came of the training.
    """
    tensors = read_index(folder)
    for name, value in trained.solved.items():
        overwrite_tensor(tensors[name], value)


def write_trained(folder: Path, trained: Trained, settings: RecoverySettings) -> list[str]:
    """Put trained parameters into a checkpoint folder, in the dtype of its files, and what was solved before them.

    An adapter is merged in float32. Tensors that did not change keep their bytes.

    Args:
        folder: The checkpoint, as it was trained from.
        trained: What came of the training.
        settings: Its settings.

    Returns:
        Names of the tensors that training changed.

    Raises:
        OutputError: There is no room for the float32 copy that is made on the way.
    """
    write_solved(folder, trained)
    model = load_model(folder, torch.float32, torch.device("cpu"))
    if settings.uses_lora:
        adapted = add_lora(model, settings.lora, seed=settings.seed)
        _set_parameters(model, trained.parameters)
        model = adapted.merge_and_unload()
    else:
        _set_parameters(model, trained.parameters)
    scratch = folder / ".trained"
    try:
        with room_needed(folder):
            model.save_pretrained(scratch)
        return _copy_changed(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@torch.no_grad()
def _set_parameters(model: Any, values: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        parameters[name].copy_(value)


def _copy_changed(scratch: Path, folder: Path) -> list[str]:
    new, old = read_index(scratch), read_index(folder)
    names = stored_names(list(new), list(old))
    written = []
    for name, info in new.items():
        if names[name] not in old:  # a buffer that this version of transformers saves and the source's did not
            continue
        target = old[names[name]]
        value = read_tensor(info).to(DTYPES[target.dtype])
        if not torch.equal(value, read_tensor(target)):
            overwrite_tensor(target, value)
            written.append(names[name])
    return written


def save_adapter(folder: Path, trained: Trained, base: str) -> None:
    """Save the adapter beside the merged checkpoint, for who wants it on top of the pruned model.

    Args:
        folder: The checkpoint folder; the adapter goes into its `adapter`.
        trained: What came of the training.
        base: Hub id of the pruned model that it belongs to.
    """
    config = trained.adapter.peft_config["default"]
    config.base_model_name_or_path = base
    config.inference_mode = True
    with torch.no_grad():
        parameters = dict(trained.adapter.get_base_model().named_parameters())
        for name, value in trained.parameters.items():
            parameters[name].copy_(value)
    trained.adapter.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)
