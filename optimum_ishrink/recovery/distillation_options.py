"""Options of distillation: who teaches, how predictions are compared, and what text is sampled for it."""

from __future__ import annotations

from dataclasses import dataclass

from ..options.option import option
from ..options.run import RunOptions
from .teachers import NamedTeacher, parse_teachers


@dataclass(frozen=True, kw_only=True, repr=False)
class DistillationOptions(RunOptions):
    """How the pruned model learns from a teacher."""

    recovery_teacher: str | None = option(
        None,
        metavar="M[:W][,M[:W]...]",
        check=parse_teachers,
        path="teachers",
        flags=("--teacher",),
        help="Hub id or folder of the teacher; of several, the mean of their predictions, with weights W",
        doc="A teacher other than the unpruned model: Hub id or folder of a model with the same tokenizer, or with a "
        "larger one that this one was cut from. Several of one tokenizer, `A,B` or with weights `A:0.7,B:0.3`, teach "
        "the weighted mean of their probabilities; `self` text is then sampled from the first.",
        default_help="the unpruned model",
    )
    recovery_temperature: float = option(
        1.0,
        gt=0,
        metavar="T",
        help="temperature of kl and the other divergences",
        doc="What logits are divided by before `kl` and the other divergences compare them.",
    )
    recovery_jsd_beta: float = option(
        0.5,
        gt=0,
        lt=1,
        metavar="B",
        help="share of the teacher in the mixture of the loss jsd",
        doc="Share of the teacher in the mixture that the loss `jsd` compares teacher and student with: near 0 it "
        "behaves like `kl`, near 1 like `reverse-kl`.",
    )
    recovery_skew: float = option(
        0.1,
        gt=0,
        lt=1,
        metavar="A",
        help="skew of the losses skew-kl and skew-reverse-kl",
        doc="How much of a distribution itself is mixed into the one that `skew-kl` and `skew-reverse-kl` compare it "
        "with. 0.1 is the value of the method's authors.",
    )
    recovery_top_k: int | None = option(
        None,
        metavar="K",
        help="compare the teacher's K most likely tokens",
        doc="Compare only the teacher's K most likely tokens one by one, and all others as one. With several epochs "
        "or a `recovery_cache` the teacher then runs once.",
        default_help="all tokens",
    )
    recovery_on_policy: float = option(
        0.0,
        ge=0,
        le=1,
        metavar="SHARE",
        help="share of the training windows that the student itself goes on with and the teacher corrects (GKD)",
        doc="Share of the training windows that the student itself samples as it is trained, from the beginnings of "
        "the given ones, so that the teacher corrects what the student would say (GKD). The teacher runs on every "
        "batch then.",
    )
    recovery_on_policy_steps: int = option(
        16,
        metavar="N",
        help="steps that the student samples for at once",
        doc="Steps that the student samples for at once, before the first of them. 16 steps of 8 windows, half of "
        "them its own, are 64 windows, as many as are sampled side by side; fewer steps are nearer to the student as "
        "it is, and sample slower.",
    )
    recovery_sampling_temperature: float = option(
        1.0,
        gt=0,
        metavar="T",
        help="temperature of sampled text",
        doc="Temperature at which the teacher samples `self` text, and the student its own.",
    )
    recovery_sampling_filter: float = option(
        0.1,
        ge=0,
        lt=1,
        metavar="P",
        help="share of sampled text to drop",
        doc="Share of the sampled text that is dropped because the teacher itself finds it least likely.",
    )
    recovery_cache: str | None = option(
        None,
        metavar="DIR",
        path="folder",
        help="folder that stores sampled text and the teacher's top k for other runs",
        doc="Folder in which sampled text and the teacher's top k are stored for other runs.",
    )

    @property
    def teachers(self) -> tuple[NamedTeacher, ...]:
        """The teachers that are named, with their weights; empty where the unpruned model teaches."""
        return () if self.recovery_teacher is None else parse_teachers(self.recovery_teacher)
