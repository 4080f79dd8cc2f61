"""What a training needs before its first step: its working folder, its text, its teacher, and what all depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState

from ..checkpoint.fingerprint import checkpoint_digest
from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..core.device import dtype_name
from ..core.digest import digest, file_digest, tensor_digest
from ..core.durable import load_tensors, save_tensors
from ..core.limits import check_lengths, check_tokens
from ..core.version import __version__
from ..options.option import options_of
from ..options.run import RunOptions
from ..report.plan import Plan
from ..text.sources import parse_sources
from ..text.windows import beginning
from .options import RecoveryOptions
from .process_state import process_state
from .self_text import self_text
from .teacher import LayerMap
from .teacher_models import TeacherModels, layer_names
from .teacher_text import TokenPair, pair_tokens
from .training import micro_batch
from .training_text import RecoveryText, TextPart, recovery_text
from .work_folder import last_step, open_work

_VERSIONS = (__version__, torch.__version__, transformers.__version__)
"""What a teacher computes with: nothing that another version has stored is read."""

TEXT = "text.json"


@dataclass(frozen=True)
class Models:
    """The student and its teacher.

    Args:
        student: The pruned checkpoint.
        teacher: The model to learn from, or None.
        plan: The plan that the student was cut by, or None where it is not known.
        is_base: Whether the teacher is the unpruned model that the plan started from.
        more_teachers: Further models to learn from, with the teacher's tokens.
    """

    student: Source
    teacher: Source | None
    plan: Plan | None
    is_base: bool
    more_teachers: tuple[Source, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the modules of the student's layers, in order."""
        return layer_names(self.student)

    def layer_map(self) -> LayerMap:
        """Return which of the teacher's layers each of the student's layers corresponds to."""
        if self.is_base and self.plan is not None:
            return LayerMap.of_retained(self.plan.layers, self.plan.shape["num_hidden_layers"])
        assert self.teacher is not None, "losses that compare layers have a teacher"
        return LayerMap.even(self.student.binding.sizes["layers"], self.teacher.binding.sizes["layers"])


@dataclass(frozen=True)
class Preparation:
    """Everything that is known before the first step.

    Args:
        options: The recovery's options.
        models: The student and its teacher.
        session: Device and dtype.
        work: The working folder.
        text: The training text.
        teachers: The models of the teachers.
        teacher_cache: Folder of the teacher's top k, or None when the teacher runs on every batch.
        solution: File of the weights that the closed form gives before the training.
        micro: Windows run at once in one process.
        tokenizer: The student's tokenizer.
        pair: The same with the teacher's; None where they have the same tokens.
    """

    options: RecoveryOptions
    models: Models
    session: Session
    work: Path
    text: RecoveryText
    teachers: TeacherModels
    teacher_cache: Path | None
    solution: Path
    micro: int
    tokenizer: Any
    pair: TokenPair | None = None

    @property
    def resumes(self) -> bool:
        """Whether the working folder holds a checkpoint to resume from."""
        return last_step(self.work) is not None

    @property
    def processes(self) -> PartialState:
        """This process and the others."""
        return process_state(self.session.device)

    def store_solution(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Store the weights that the closed form gave, for this run and those that resume it.

        Args:
            weights: Tensors by their names in the student's checkpoint, in its dtypes.
        """
        save_tensors(self.solution, weights)

    def read_solution(self) -> dict[str, torch.Tensor] | None:
        """Return the stored weights, or None when there are none yet."""
        return load_tensors(self.solution) if self.solution.is_file() else None


def pair_of(student: Source, teacher: Source) -> TokenPair | None:
    """Return a student's tokenizer with its teacher's; None where they have the same tokens.

    Args:
        student: The student.
        teacher: The teacher.

    Raises:
        RequestError: The student has tokens that the teacher does not have.
    """
    rows = [source.config.vocab_size for source in (student, teacher)]  # first: it says in one line what is damaged
    return pair_tokens(student.load_tokenizer(), teacher.load_tokenizer(), *rows)


def own_tokenizer(session: Session, student: Source) -> Any:
    """Return the tokenizer that a student's text is read with: the run's, unless the student has other tokens.

    Args:
        session: The run.
        student: The student.
    """
    if student is session.source:
        return session.tokenizer
    own = student.load_tokenizer()
    return session.tokenizer if session.tokenizer.get_vocab() == own.get_vocab() else own


def prepare(
    session: Session,
    options: RecoveryOptions,
    models: Models,
    work: Path,
    text: RecoveryText | None = None,
    part: TextPart | None = None,
) -> Preparation:
    """Open the working folder, load the teacher and draw the text. The student's folder is only read.

    Args:
        session: Device and dtype, and the unpruned model when that is the teacher.
        options: The recovery's options.
        models: The student and its teacher.
        work: The working folder; an unfinished run of the same request in it is resumed.
        text: The text where `check_text` has read it already, in the same tokens.
        part: The part of the text to train on; None for all of it.

    Raises:
        RequestError: The request cannot be met, or the working folder belongs to another request.
        DataError: The text cannot be used.
        NotFiniteError: The teacher gives NaN or infinite values.
        OutputError: There is no room.
    """
    device, dtype = session.device, session.dtype
    state = process_state(device)
    micro = micro_batch(options.recovery_batch_size, options.batch_windows, state.num_processes)
    pair = None
    if models.teacher is not None and options.needs_teacher_model:
        pair = pair_of(models.student, models.teacher)
    tokenizer = own_tokenizer(session, models.student) if pair is None else pair.tokenizer
    request = _request(session, options, models, state.num_processes)
    if pair is not None:
        request["tokens"] = tensor_digest(pair.map.carried)
    with state.main_process_first():
        open_work(work, request, write=state.is_main_process)
    sources: tuple[Source, ...] = ()
    if models.teacher is not None and options.needs_teacher_model:
        sources = (models.teacher, *(models.more_teachers if options.needs_teacher else ()))
    teachers = TeacherModels(session, sources, is_base=models.is_base)
    cache = Path(options.recovery_cache).expanduser() if options.recovery_cache else work
    samples = cache if part is None or options.recovery_cache else part.folder
    place = [dtype_name(dtype), device.type]

    sampling = tokenizer if pair is None else pair.teacher

    def sample(count: int) -> torch.Tensor:
        drawn: list[Any] = [request["teacher"], count, options.recovery_length, options.seed, *place]
        drawn += [options.recovery_sampling_temperature, options.recovery_sampling_filter]
        # The tokenizer is no part of the teacher's digest, and says what windows begin with, and what follows an end.
        # Not what its template gives: some write the date.
        drawn += [
            beginning(sampling),
            sampling.chat_template,
            sampling.bos_token_id,
            sampling.eos_token_id,
            *_VERSIONS,
        ]
        with state.main_process_first():
            return self_text(
                teachers.whole,
                sampling,
                options.recovery_length,
                count,
                seed=options.seed,
                temperature=options.recovery_sampling_temperature,
                dropped=options.recovery_sampling_filter,
                cache=samples / f"self-{digest(drawn)}.safetensors",
            )

    if text is None:
        text = recovery_text(options, tokenizer, sample=sample, pair=pair)
    if part is not None:
        text = text.part(part, options.recovery_batch_size)
    read = text.input_ids if text.teacher is None else text.teacher.input_ids
    if sources and pair is not None:
        name = sources[0].display_name
        check_lengths(sources[0].config, name, recovery_length=read.shape[1])
        check_tokens(read, sources[0].config.vocab_size, pair.teacher, "the recovery text", name)
    of_text = tensor_digest(*text.tensors)
    with state.main_process_first():
        open_work(work, {"text": of_text}, name=TEXT, write=state.is_main_process)
    taught_by = request.get("teachers", request["teacher"])
    of_teacher = [taught_by, of_text, options.recovery_top_k, options.recovery_temperature, *place, *_VERSIONS]
    if pair is not None:
        of_teacher.append(request["tokens"])
    of_solution = [request["model"], request["plan"], request["teacher"], of_text, options.recovery_compensation]
    of_solution += [options.recovery_compensation_samples, *place]
    if options.starts_calibrated:
        of_solution += [options.recovery_for, request["recovery_types"]]
    stored = cache / f"teacher-{digest(of_teacher)}" if options.caches_teacher else None
    if options.needs_teacher and stored is None:
        teachers.check(teachers.in_step(), read[:1], "the recovery text")
    elif state.is_main_process and (options.starts_from_cut or (stored is not None and not stored.is_dir())):
        teachers.check(teachers.all_whole(), read[:1], "the recovery text")
    return Preparation(
        options,
        models,
        session,
        work,
        text,
        teachers,
        stored,
        cache / f"solved-{digest(of_solution)}.safetensors",
        micro,
        tokenizer,
        pair,
    )


def _request(session: Session, options: RecoveryOptions, models: Models, processes: int) -> dict[str, Any]:
    """Return everything that a recovery's result depends on, as plain values."""
    names = options_of(RecoveryOptions).keys() - options_of(RunOptions).keys()
    requested = {name: value for name, value in options.to_dict().items() if name in names}
    for name in ("recovery_cache", "recovery_keep_adapter", "recovery_teacher"):
        del requested[name]
    if options.recovery_types is not None:
        requested["recovery_types"] = file_digest([Path(options.recovery_types).expanduser()])
    sources = parse_sources(options.recovery_data)
    requested["recovery_data"] = [[source.label, source.fingerprint()] for source in sources]
    teacher = models.teacher if options.needs_teacher_model else None
    plan = None
    if models.plan is not None:
        cut = models.plan.to_json()
        plan = digest({key: cut[key] for key in ("new_shape", "layers", "units")})
    several = {}
    if teacher is not None and models.more_teachers:
        weights = [named.weight for named in options.teachers]
        digests = [checkpoint_digest(source.folder) for source in (teacher, *models.more_teachers)]
        several = {"teachers": [list(pair) for pair in zip(digests, weights, strict=True)]}
    return {
        **several,
        "model": checkpoint_digest(models.student.folder),
        "teacher": None if teacher is None else checkpoint_digest(teacher.folder),
        "plan": plan,
        **requested,
        "batch_size": options.batch_windows,
        "seed": options.seed,
        "dtype": dtype_name(session.dtype),
        "device": session.device.type,
        "processes": processes,
    }
