"""Options of importance: how units and layers are scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import RequestError
from ..options.option import option
from ..text.options import CalibrationOptions

SELECTIONS = ("one-shot", "greedy", "contiguous")
"""Remove the lowest scored layers at once, or one by one with new scores, or the cheapest span of adjacent layers."""


def _unit_criteria() -> Iterable[str]:
    from .criterion import UNIT_CRITERIA

    return UNIT_CRITERIA


def _expert_criteria() -> Iterable[str]:
    from .criterion import EXPERT_CRITERIA

    return EXPERT_CRITERIA


def _layer_criteria() -> Iterable[str]:
    from .criterion import LAYER_CRITERIA

    return LAYER_CRITERIA


@dataclass(frozen=True, kw_only=True, repr=False)
class ImportanceOptions(CalibrationOptions):
    """How units and layers are scored."""

    importance: str = option(
        "fisher",
        metavar="NAME",
        choices=_unit_criteria,
        help="criterion for heads and neurons; 'help' lists all",
        doc="Criterion for KV groups, query heads and MLP neurons; `ishrink plan --importance help` lists all. The "
        "default, `fisher`, had the lowest KL divergence of all criteria on SmolLM2-135M-Instruct. `taylor` and "
        "`l2-norm` also score the neurons of fused experts.",
    )
    importance_group_size: int | None = option(
        None,
        metavar="N",
        help="neurons scored as one unit",
        doc="Consecutive neurons that are scored as one unit; each gets an equal share of its score. It has to divide "
        "the MLP width. By default 1, and for criteria that run the model once per unit (`logits-mse`, `thesis-mix`) "
        "what leaves at most 32 groups in a layer. A cut that is not a multiple of it splits one group of a layer.",
        default_help="depends on the criterion",
    )
    expert_importance: str = option(
        "reap",
        metavar="NAME",
        choices=_expert_criteria,
        help="criterion for experts; 'help' lists all",
        doc="Criterion for whole experts, where `num_experts` drops some; `ishrink plan --expert-importance help` "
        "lists all. The default reads calibration text; `l2-norm` needs the weights alone.",
    )
    layer_importance: str = option(
        "block-influence",
        metavar="NAME",
        choices=_layer_criteria,
        help="criterion for layers; 'help' lists all",
        doc="Criterion for layers; `ishrink plan --layer-importance help` lists all.",
    )
    layer_selection: str = option(
        "one-shot",
        metavar="NAME",
        choices=SELECTIONS,
        help="one-shot, greedy or contiguous",
        doc="`one-shot` removes the lowest scored layers; `greedy` scores again after each removal, with criteria "
        "that can measure one; `contiguous` removes the adjacent layers that cost least together.",
    )
    importance_samples: int = option(
        48,
        metavar="N",
        help="calibration windows to score on, at most",
        doc="Calibration windows that units are scored on, at most. Scores settle on far fewer tokens than "
        "compensation needs, and some criteria need backward passes.",
    )
    score_cache: bool = option(
        True,
        help="score again, and cache no scores on disk",
        doc="Cache scores on disk (in `ISHRINK_CACHE`, or `ishrink` in the Hugging Face home), and reuse them when "
        "model, text, criterion and settings are the same.",
    )

    def check_together(self) -> None:
        """Check that the layer criterion can do what the selection requires.

        Raises:
            RequestError: It cannot measure a removal.
        """
        if self.layer_selection != "greedy":
            return
        from .criterion import LAYER_CRITERIA

        if not LAYER_CRITERIA[self.layer_importance].measures_removal:
            able = ", ".join(name for name in LAYER_CRITERIA if LAYER_CRITERIA[name].measures_removal)
            raise RequestError(
                f"layer_selection='greedy' scores again after each removal, which {self.layer_importance!r} cannot; "
                f"layer_importance can be {able}"
            )
