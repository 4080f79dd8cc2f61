"""Options of recovery: how the pruned model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..options.gguf_types import PLAIN_TYPES
from ..options.option import option
from ..report.compensation import COMPENSATIONS
from ..text.options import SOURCES
from .compile_options import CompileOptions
from .distillation_options import DistillationOptions
from .trained_parts import LORA, parse_trained

if TYPE_CHECKING:
    from .loss import Term

LABELS = ("text", "answers")
STARTS = ("zero", "closed-form")
NO_RECOVERY = "none"
USUAL_LOSS = "skew-reverse-kl"
"""What `recover` trains with unless told: the best on text of another kind (docs/experiments/recovery.md)."""

INTEGERS = ("int8", "int4")
"""Quantisations of safetensors that can be trained for."""

RECOVERY_FOR = (*PLAIN_TYPES, "mixed", *INTEGERS)
"""Quantisations that can be trained for: those whose values are known without another program, of GGUF and of
safetensors."""

ROUNDINGS = ("nearest", "calibrated")

LEARNING_RATES = {LORA: 1e-3, "other": 1e-4}
"""Peak learning rates: an adapter starts at zero and has to grow; trained weights only have to be adjusted."""


def _check_loss(text: str) -> None:
    if text != NO_RECOVERY:
        from .loss import parse_loss

        parse_loss(text)


@dataclass(frozen=True, kw_only=True, repr=False)
class RecoveryOptions(DistillationOptions, CompileOptions):
    """How the pruned model is trained, if at all."""

    recovery: str = option(
        NO_RECOVERY,
        metavar="LOSS",
        check=_check_loss,
        help="none, or losses: ce, kl, reverse-kl, jsd, skew-kl, skew-reverse-kl, hidden, attention; sums such as "
        "kl+hidden:0.1",
        doc="Sum of losses to train the result with, such as `kl` or `kl+hidden:0.1`; `none` trains nothing. The verb "
        "`recover` takes `skew-reverse-kl` by default: of all losses it was the best on text of another kind.",
    )
    recovery_for: str | None = option(
        None,
        metavar="TYPE",
        choices=RECOVERY_FOR,
        help="train for this type of `ishrink export`: the forward pass reads the weights that its file will hold: "
        f"{', '.join(RECOVERY_FOR)}",
        doc="Train for an export in this quantization: the forward pass reads the weights that `ishrink export "
        "--quantization` of this name will write, and the held-out loss is that of these. `int8` and `int4` are those "
        "of `--format safetensors`; `mixed` is that of the file in `recovery_types`.",
        default_help="the checkpoint's own weights",
        label="type to recover for",
    )
    recovery_types: str | None = option(
        None,
        metavar="FILE.gguf",
        path="model",
        help="with --recovery-for mixed: a GGUF file of the model, whose types matrices are trained for",
        doc="With `recovery_for=mixed`: a GGUF file of the model that is trained, such as a mixed export or what a "
        "search made; each matrix is trained for the type that it has there.",
        default_help="none",
    )
    recovery_rounding: str | None = option(
        None,
        choices=ROUNDINGS,
        help="start of weights that are trained for a type of GGUF: nearest values, or calibrated: those that change "
        "least of what matrices compute on the training text",
        doc="Where weights start that are trained for a type of GGUF: at their `nearest` values, or `calibrated`: "
        "rounded so that what matrices compute on the training text changes least, to values that the nearest "
        "rounding of an export keeps.",
        default_help="calibrated for a type of GGUF",
    )
    recovery_data: Sequence[str] = option(
        ("self",),
        metavar="SRC[,SRC...]",
        path="text",
        help=f"text to train on: {SOURCES}",
        doc="Text sources to train on, mixed in equal shares. `self` is text that the teacher samples.",
    )
    recovery_tokens: int = option(
        200_000,
        metavar="N",
        help="training tokens, at most",
        doc="Tokens of that text, at most, including the windows that are held out to choose the best checkpoint.",
    )
    recovery_length: int = option(256, ge=2, metavar="N", help="tokens in each training window")
    recovery_labels: str = option(
        "text",
        metavar="WHICH",
        choices=LABELS,
        help="tokens that ce is computed on: text or answers",
        doc="Tokens that `ce` is computed on: all of the `text`, or those of `answers` alone.",
    )
    recovery_early_exit: Sequence[int] | None = option(
        None,
        ge=1,
        metavar="N[,N...]",
        help="also train the head after the first N layers, which can then draft for the whole model",
        doc="Also train the model's own final norm and head after its first N layers, so that these draft for the "
        "whole model with `generate(assistant_early_exit=N)`: `kl` and `ce` are taken there, too.",
        default_help="no exit",
    )
    recovery_early_exit_weight: float = option(
        1.0,
        gt=0,
        metavar="W",
        help="weight of the losses at all early exits together",
        doc="Weight of the losses at all early exits together. 1 by default: as much as the whole model's.",
    )
    recovery_train: str = option(
        LORA,
        metavar="WHAT",
        check=parse_trained,
        help="lora, full, or a sum of embeddings, head, norms and last:N",
        doc="What is trained: `lora`, `full`, or parts such as `norms+last:2+head`. `embeddings` are the embedding "
        "and the head.",
    )
    recovery_lora_rank: int = option(32, metavar="R", help="rank of the adapter")
    recovery_lora_alpha: int = option(
        64, metavar="N", help="the adapter is scaled by N / R", doc="The adapter is scaled by alpha / rank."
    )
    recovery_lora_dropout: float = option(
        0.0,
        ge=0,
        lt=1,
        metavar="P",
        help="dropout before the adapter",
        doc="Dropout before the adapter. None by default: one pass over the text does not overfit.",
    )
    recovery_lora_targets: Sequence[str] = option(
        (),
        metavar="A[,B...]",
        help="linear modules to adapt",
        doc="Linear modules to adapt, such as `q_proj`; those of all layers when empty.",
        default_help="those of all layers",
    )
    recovery_lora_start: str = option(
        "zero",
        metavar="HOW",
        choices=STARTS,
        help="start of the adapter: zero or closed-form",
        doc="Start of the adapter: `zero`, or `closed-form`, the low-rank repair of the cut projections on the "
        "training text.",
    )
    recovery_compensation: str = option(
        "none",
        metavar="METHOD",
        choices=COMPENSATIONS,
        help="closed-form repair on the training text before training: ridge or none",
        doc="`ridge` re-fits the projections that read what was cut on the training text before the training, as "
        "`compensation` does on the calibration text; `none` does not.",
    )
    recovery_compensation_samples: int = option(
        256,
        metavar="N",
        help="windows that the closed-form repair reads, at most",
        doc="Windows of the training text that the closed-form repair reads, at most. 256, four times the default "
        "calibration, because more text of more kinds improves it.",
    )
    recovery_learning_rate: float | None = option(
        None,
        gt=0,
        metavar="LR",
        help="peak learning rate",
        doc="Peak learning rate. By default 1e-3 for an adapter and 1e-4 for anything else.",
        default_help="1e-3 for lora, else 1e-4",
    )
    recovery_layer_decay: float = option(
        1.0,
        gt=0,
        le=1,
        metavar="D",
        help="each layer's learning rate as a share of that of the next one",
        doc="Each layer's learning rate as a share of that of the layer after it: the last layer has the peak, and "
        "the embedding the least. 1 trains all alike.",
    )
    recovery_ema: float | None = option(
        None,
        gt=0,
        lt=1,
        metavar="DECAY",
        help="average the weights over the steps, each of which retains DECAY of the average",
        doc="Exponential average of the weights over the steps, of which each retains this share, such as 0.99; the "
        "average is evaluated and saved in place of the weights. The first steps retain less.",
        default_help="no average",
    )
    recovery_batch_size: int = option(
        8,
        metavar="N",
        help="windows in a step",
        doc="Windows in a step, over all processes; `batch_size` is how many run at once.",
    )
    recovery_epochs: int = option(1, metavar="N", help="passes over the text")
    recovery_save_steps: int = option(
        25,
        metavar="N",
        help="steps between evaluations and checkpoints",
        doc="Steps between evaluations on the held-out windows, each with a checkpoint to resume from.",
    )
    recovery_patience: int = option(5, metavar="N", help="evaluations without improvement before training stops early")
    recovery_checkpointing: bool = option(
        False,
        help="compute layers twice to save memory",
        doc="Compute layers a second time in the backward pass, to save memory.",
    )
    recovery_keep_adapter: str | None = option(
        None,
        metavar="ID",
        flags=("--keep-adapter",),
        const="auto",
        help="also save the adapter; ID is the Hub id of the pruned model",
        doc="Also save the adapter, with this Hub id of the pruned model as its base; `auto` takes the id that the "
        "pruned model was opened by.",
        default_help="not saved",
    )

    def check_together(self) -> None:
        """Check that the closed form is requested once, and that what belongs to a quantisation or an exit fits.

        Raises:
            RequestError: It is requested at full and at low rank; dropout is, where an adapter's sum is quantised; a
                calibrated start is without a type of GGUF; mixed types are without a file; early exits are without a
                loss that reads logits; quantised weights are to be averaged; a loss compares the layers of several
                teachers; or what the student samples has no teacher, or one whose predictions are stored.
        """
        if self.recovery_rounding == "calibrated" and (self.recovery_for or INTEGERS[0]) in INTEGERS:
            raise RequestError(
                "recovery_rounding='calibrated' rounds to the type of GGUF that is trained for; set recovery_for to "
                f"one of {', '.join(name for name in RECOVERY_FOR if name not in INTEGERS)}"
            )
        if (self.recovery_for == "mixed") != (self.recovery_types is not None):
            raise RequestError(
                "recovery_for='mixed' trains for the types of a file: name it with recovery_types=FILE.gguf, such as "
                "a mixed export of the model; other values of recovery_for take none"
            )
        if self.recovery_for is not None and self.recovery_lora_dropout:
            raise RequestError(
                "recovery_lora_dropout leaves inputs of the adapter out, and recovery_for quantises it merged into its"
                " weight; set recovery_lora_dropout to 0"
            )
        if self.recovery_for is not None and self.recovery_ema is not None:
            raise RequestError("recovery_for trains quantised weights, whose average is none; leave recovery_ema out")
        if self.recovery_compensation != "none" and self.recovery_lora_start != "zero":
            raise RequestError(
                "recovery_compensation='ridge' solves at full rank what recovery_lora_start='closed-form' solves at a "
                "low one; choose one of them"
            )
        if len(self.teachers) > 1 and self.recovers:
            for term in self.terms:
                if term.loss.teacher and term.loss.reads != "logits":
                    raise RequestError(
                        f"the loss {term.loss.name!r} compares layers, and of several teachers only the "
                        "predictions can be averaged; name one teacher, or a loss of predictions, such as kl"
                    )
        if self.recovery_on_policy and self.recovers and not self.needs_teacher:
            raise RequestError(
                f"recovery_on_policy trains on what the student samples, where a teacher says what is better, and "
                f"recovery={self.recovery!r} compares with none; add kl, or leave it out"
            )
        if self.recovery_on_policy and self.recovers and self.caches_teacher:
            raise RequestError(
                "recovery_on_policy trains on text that the student samples on the way, and stored predictions are of "
                "the given text; leave out recovery_top_k, or recovery_cache and further epochs"
            )
        if self.recovery_early_exit and self.recovers and all(term.loss.reads != "logits" for term in self.terms):
            raise RequestError(
                f"recovery_early_exit trains the head after some layers, and recovery={self.recovery!r} compares no "
                "logits; add kl or ce, such as kl+hidden:0.1"
            )

    @property
    def recovers(self) -> bool:
        """Whether anything is trained."""
        return self.recovery != NO_RECOVERY

    @property
    def terms(self) -> tuple[Term, ...]:
        """The losses with their weights."""
        from .loss import parse_loss

        return parse_loss(self.recovery)

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained."""
        return parse_trained(self.recovery_train)

    @property
    def uses_lora(self) -> bool:
        """Whether an adapter is trained."""
        return self.parts == (LORA,)

    @property
    def peak_learning_rate(self) -> float:
        """The peak of the learning rate."""
        return self.recovery_learning_rate or LEARNING_RATES[LORA if self.uses_lora else "other"]

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss compares with a teacher."""
        return any(term.loss.teacher for term in self.terms)

    @property
    def needs_teacher_model(self) -> bool:
        """Whether a teacher's weights are needed: for a loss, for sampled text, or for the closed form."""
        return self.needs_teacher or "self" in self.recovery_data or self.starts_from_cut

    @property
    def starts_from_cut(self) -> bool:
        """Whether the cut is repaired in closed form before the training."""
        return self.compensates or (self.uses_lora and self.recovery_lora_start != "zero")

    @property
    def compensates(self) -> bool:
        """Whether weights of the student are re-fit before the training."""
        return self.recovery_compensation != "none"

    @property
    def starts_calibrated(self) -> bool:
        """Whether weights are rounded for what matrices compute before the training."""
        if self.recovery_rounding is None:
            return self.recovery_for is not None and self.recovery_for not in INTEGERS
        return self.recovery_rounding == "calibrated"

    @property
    def caches_teacher(self) -> bool:
        """Whether the teacher's top k are computed once: when epochs or runs can share them and no loss reads more."""
        shared = self.recovery_epochs > 1 or self.recovery_cache is not None
        return (
            self.recovery_top_k is not None and shared and not self.reads("hidden_states") and not self.reads("values")
        )

    def reads(self, what: str) -> bool:
        """Return whether a loss reads this of the teacher.

        Args:
            what: `logits`, `hidden_states` or `values`.
        """
        return any(term.loss.teacher and term.loss.reads == what for term in self.terms)
