"""The stage that recovers: what it checks, and what becomes of the weights; `run_training` is between the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..architectures.composite import check_alone
from ..architectures.description import HEADS
from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..core.limits import check_tokens
from ..core.processes import process_count
from ..core.progress import note
from ..errors import RequestError
from ..modeling.compiled_layers import check_compiler
from ..modeling.early_exit import check_exits, check_exits_run
from ..report.measurement import Measurement
from ..report.recovery import RecoveryRecord
from ..text.sources import parse_sources
from .options import RecoveryOptions
from .preparation import own_tokenizer, pair_of
from .teacher_text import TokenPair
from .trained_weights import save_adapter, write_solved, write_trained
from .training import Trained
from .training_text import RecoveryText, recovery_text


def check_device(session: Session) -> None:
    """Check that transformers' trainer can use the run's device.

    Args:
        session: The run.

    Raises:
        RequestError: It is not the first CUDA device that this process sees.
    """
    if process_count() == 1 and session.device.index:
        raise RequestError(
            f"recovery trains on the first CUDA device that it sees, not on {session.device}; "
            f"set CUDA_VISIBLE_DEVICES={session.device.index} and leave out --device"
        )


def check_compile(options: RecoveryOptions, session: Session) -> None:
    """Check that the layers of student and teacher can be compiled.

    Args:
        options: The recovery's options.
        session: The run.

    Raises:
        RequestError: A loss reads what is inside of layers, or there is no compiler.
    """
    inside = [term.loss.name for term in options.terms if term.loss.reads == "values"]
    if inside:
        raise RequestError(
            f"torch_compile compiles layers, and the loss {inside[0]!r} reads what is inside of them; leave out one "
            "of both"
        )
    check_compiler(session.device)


def check_start(options: RecoveryOptions, *, is_base: bool) -> None:
    """Check that the closed form before the training is possible, where it was requested.

    Args:
        options: The recovery's options.
        is_base: Whether the plan is known and the teacher is the unpruned model.

    Raises:
        RequestError: It is not possible.
    """
    if options.compensates and not is_base:
        raise RequestError(
            f"recovery_compensation={options.recovery_compensation!r} solves for what was cut: it needs a model "
            "that ishrink cut, and the unpruned model as the teacher"
        )
    if options.recovery_lora_start != "zero" and not (is_base and options.uses_lora):
        raise RequestError(
            "recovery_lora_start='closed-form' solves for what was cut: it needs recovery_train='lora', a model that "
            "ishrink cut, and the unpruned model as the teacher"
        )


def check_teacher(options: RecoveryOptions, teacher: Source, student: Source) -> TokenPair | None:
    """Check that another model can teach this one: that it has all of its tokens.

    Args:
        options: The recovery's options.
        teacher: The teacher.
        student: The student, or the model that it is cut from.

    Returns:
        The tokenizers of both, where the teacher has more tokens.

    Raises:
        RequestError: The student has other tokens, or fewer and a loss cannot be taken between these.
    """
    pair = pair_of(student, teacher)
    if pair is not None:
        check_losses(options)
    return pair


def check_teachers(teacher: Source, more: Sequence[Source]) -> None:
    """Check that teachers can teach together: that all have the tokens of the first.

    Args:
        teacher: The first teacher.
        more: The others.

    Raises:
        RequestError: One has other tokens; the message names both.
    """
    tokens, rows = teacher.load_tokenizer().get_vocab(), teacher.config.vocab_size
    for other in more:
        if other.load_tokenizer().get_vocab() == tokens and other.config.vocab_size == rows:
            continue
        raise RequestError(
            f"the teachers {teacher.display_name} and {other.display_name} have different tokenizers "
            f"({rows} and {other.config.vocab_size} rows), and only predictions of the same tokens can be averaged; "
            "name teachers of one tokenizer"
        )


def check_losses(options: RecoveryOptions) -> None:
    """Check that the losses can be taken between models that read a text in different tokens.

    Args:
        options: The recovery's options.

    Raises:
        RequestError: One cannot.
    """
    for term in options.terms:
        if term.loss.reads == "values":
            raise RequestError(
                f"the loss {term.loss.name!r} relates the tokens of a text to each other, and the teacher has more "
                "tokens than the model, so it reads the text in others; use kl, hidden or ce"
            )


def check_text(
    options: RecoveryOptions, session: Session, student: Source, pair: TokenPair | None
) -> RecoveryText | None:
    """Read the training text now, not after long work; sampled text is taken as given.

    Args:
        options: The recovery's options.
        session: The run.
        student: The student, or the model that it is cut from.
        pair: Its tokenizer with that of a teacher who reads other tokens and is needed.

    Returns:
        The text, for `prepare`; None where some of it is sampled from the teacher later.

    Raises:
        DataError: There is too little text, none with answers, or a token that the model has no embedding for.
    """
    sources, length = parse_sources(options.recovery_data), options.recovery_length
    samples = any(source.is_self for source in sources)
    pair = None if samples else pair
    tokenizer = own_tokenizer(session, student) if pair is None else pair.tokenizer
    text = recovery_text(
        options, tokenizer, sample=lambda count: torch.zeros(count, length, dtype=torch.int64), pair=pair
    )
    label = ", ".join(source.label for source in sources)
    check_tokens(text.input_ids, student.config.vocab_size, tokenizer, label, student.display_name)
    return None if samples else text


def adapter_base(options: RecoveryOptions, student: Source | None) -> str | None:
    """Return the Hub id that a saved adapter names as its base; None when none is saved.

    Args:
        options: The recovery's options.
        student: The pruned model, or None when it has no name yet.

    Raises:
        RequestError: `auto` was requested and the pruned model has no Hub id; or no adapter is trained.
    """
    requested = options.recovery_keep_adapter
    if requested and not options.uses_lora:
        raise RequestError(
            f"--keep-adapter saves a LoRA adapter, and recovery_train={options.recovery_train!r} trains none"
        )
    if requested and options.compensates:
        raise RequestError(
            "a saved adapter belongs on the pruned model, and recovery_compensation changes other weights of it; "
            "leave out one of them"
        )
    if requested and options.starts_calibrated:
        raise RequestError(
            "a saved adapter belongs on the pruned model, and a calibrated start changes other weights of it; "
            "set recovery_rounding='nearest'"
        )
    if requested != "auto":
        return requested or None
    if student is None or not student.is_hub_id:
        raise RequestError(
            "an adapter names the pruned model that it belongs to, and this one has no name on the Hub; "
            "push it without recovery first, and name it: --keep-adapter USER/NAME"
        )
    return student.name


def check_targets(options: RecoveryOptions, student: Source) -> None:
    """Check that no adapter is put into a head that is the embedding too: merging it would change both.

    Args:
        options: The recovery's options.
        student: The checkpoint that is trained, or the model that it is cut from.

    Raises:
        RequestError: A target is the tied head.
    """
    heads = {name.removesuffix(".weight") for name in HEADS}
    tied = sorted(heads & {*options.recovery_lora_targets}) if student.config.tie_word_embeddings else []
    if options.uses_lora and tied:
        raise RequestError(
            f"recovery_lora_targets names {tied[0]}, which is the embedding too (tie_word_embeddings), and an adapter "
            "would be trained in one place and merged into both; leave it out, or train it with --recovery-train head"
        )


def check_early_exits(options: RecoveryOptions, student: Source, layers: int) -> None:
    """Check that early exits are within the model, and that its class can run them.

    Args:
        options: The recovery's options.
        student: The checkpoint that is trained, or the model that it is cut from.
        layers: Layers of the model that is trained.

    Raises:
        RequestError: They are not, or it cannot.
    """
    if not options.recovery_early_exit:
        return
    if not options.recovers:
        raise RequestError(
            "recovery_early_exit is trained in a recovery, and recovery='none' trains nothing; add --recovery kl"
        )
    check_alone(
        student.raw_config,
        student.display_name,
        "an early exit",
        "leave out recovery_early_exit",
    )
    check_exits(options.recovery_early_exit, layers)
    check_exits_run(student.config, student.binding)


def apply(
    trained: Trained,
    options: RecoveryOptions,
    checkpoint: Source,
    *,
    adapter_base: str | None,
    before: Sequence[Measurement],
    teacher: str | None,
) -> RecoveryRecord:
    """Write what was trained into a checkpoint, and return its record.

    Training that did not lower the held-out loss is not written: the weights stay as they were cut, or as they were
    re-fit where that helped, and a note says so.

    Args:
        trained: The result of the training.
        options: The recovery's options.
        checkpoint: The checkpoint that was trained from; its weights are replaced.
        adapter_base: Hub id that a saved adapter names as its base; None to save none.
        before: What was measured before the training.
        teacher: Name of the teacher; None when it was the unpruned model, or when there was none.
    """
    record = trained.record
    if trained.adds:
        write_trained(checkpoint.folder, trained, options)
        if adapter_base is not None:
            save_adapter(checkpoint.folder, trained, adapter_base)
    elif trained.repairs:
        write_solved(checkpoint.folder, trained)
        solved = record.held_out_loss_solved
        assert solved is not None, "the closed form lowered it"
        note(
            f"recovery: the held-out loss was {solved:.4f} after the closed form and {record.held_out_loss:.4f} at "
            "best in training, so the weights stay as they were re-fit; try a lower --recovery-learning-rate"
        )
        record = replace(record, held_out_loss=solved, best_step=0)
    else:
        note(
            f"recovery: the held-out loss was {record.held_out_loss_before:.4f} before and "
            f"{record.held_out_loss:.4f} at best, so the weights stay as they were; "
            "try a lower --recovery-learning-rate or more text"
        )
    sources = parse_sources(options.recovery_data)
    return replace(
        record,
        helped=trained.adds or trained.repairs,
        data=tuple(source.label for source in sources),
        fingerprints=tuple(source.fingerprint() for source in sources),
        teacher=teacher,
        adapter_base=adapter_base if trained.adds else None,
        held_out_loss_stored=record.held_out_loss_stored if trained.adds else None,
        before=tuple(before),
    )
