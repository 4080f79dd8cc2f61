"""Options of the shape: what to shrink, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..architectures.description import DIMENSIONS, TOP_K
from ..errors import RequestError
from ..options.base import Options
from ..options.option import option
from .multiples import RUNTIMES
from .protection import default_protection
from .target import CONTEXT, limits_time

TARGET_DIMENSIONS = tuple(key for key in DIMENSIONS if key not in ("num_attention_heads", TOP_K))
"""What a target can change. Query heads follow their KV groups, and routing to fewer experts saves no parameters."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ShapeOptions(Options):
    """What to shrink: a shape, or a target from which a shape is computed."""

    num_hidden_layers: int | None = option(
        None, metavar="N", help="layers of the result", default_help="set by the target, or unchanged"
    )
    num_key_value_heads: int | None = option(
        None,
        metavar="N",
        help="KV groups, with their query heads",
        doc="KV groups of the result; all query heads of a removed group are removed with it.",
        default_help="set by the target, or unchanged",
    )
    num_attention_heads: int | None = option(
        None,
        metavar="N",
        help="query heads",
        doc="Query heads of the result. Fewer than the retained KV groups have are taken from within each group.",
        default_help="those of the retained KV groups",
    )
    intermediate_size: int | None = option(
        None,
        metavar="N",
        help="MLP neurons of every layer",
        doc="MLP neurons of every layer of the result, or of every expert.",
        default_help="set by the target, or unchanged",
    )
    num_experts: int | None = option(
        None,
        metavar="N",
        help="experts of every layer, in a mixture of experts",
        doc="Experts of every layer of the result, in a mixture of experts, whatever the config calls their number. "
        "Those with the lowest `expert_importance` are dropped with their rows in the router; shared experts, which "
        "read every token, stay.",
        default_help="set by the target, or unchanged",
    )
    num_experts_per_tok: int | None = option(
        None,
        metavar="N",
        help="experts that each token is routed to",
        doc="Experts that each token is routed to. It is the router's top-k, which is unchanged by default; fewer "
        "experts than it can only stay when it is lowered as well.",
        default_help="unchanged",
    )
    vocab_size: int | None = option(
        None,
        metavar="N",
        help="tokens of the vocabulary: rows of the embedding and the head",
        doc="Tokens of the result's vocabulary, which are rows of its embedding and its head. The tokens that the "
        "text and the languages of `vocab_text` and `vocab_languages` need least are removed, and the tokenizer is "
        "rewritten.",
        default_help="set by the target, or unchanged",
    )
    vocab_multiple: int = option(
        64,
        ge=1,
        metavar="N",
        help="a new vocabulary's size is a multiple of this",
        doc="A new vocabulary's size is a multiple of this: GPU kernels tile by 64, and tensor parallelism needs "
        "equal parts.",
    )
    tie_embeddings: bool = option(
        False,
        help="tie a head that equals the embedding but for quantisation",
        doc="Tie the head to the embedding where the two are equal, to the bit or but for quantisation, and the "
        "config does not tie them: the head's parameters are saved, and both use the one that is less coarsely "
        "quantised. Refused where the head is another matrix.",
    )
    target: str | None = option(
        None,
        help="params=-15%, params=115M, bytes=230MB or memory=300MB, with --profile also decode=+20% or ttft=-20%; "
        "changes the dimensions that are not given",
        doc='`"params=-15%"`, `"params=115M"`, `"bytes=230MB"`, the most bytes that the weights may have, '
        '`"memory=300MB"`, the most that weights and the KV cache of `context` tokens may take in the checkpoint\'s '
        'dtype, or with `profile` `"decode=+20%"` and `"ttft=-20%"`; solved over the dimensions that are not given. '
        "`ishrink search --runtime torch` meets several limits at once, and measures.",
    )
    context: int = option(
        CONTEXT,
        ge=1,
        metavar="N",
        help="tokens that the KV cache has room for, in a target on memory",
    )
    profile: str | None = option(
        None,
        path="folder",
        metavar="FILE",
        help="what a device takes, as `ishrink profile --runtime torch` measured it there; for decode and ttft",
        doc="What a device takes, as `ishrink profile --runtime torch` measured it there. A target on `decode` or "
        "`ttft` is solved by its prices.",
    )
    prune: Sequence[str] | None = option(
        None,
        metavar="KEY[,KEY...]",
        choices=TARGET_DIMENSIONS,
        label="dimension to prune",
        help="dimensions that the target changes",
        doc="Dimensions that the target changes, each of them: `num_hidden_layers`, `num_key_value_heads`, "
        "`intermediate_size`, `num_experts`, `vocab_size`. By default the cheapest of all that are not given.",
        default_help="chosen by expected damage",
    )
    intermediate_multiple: int | None = option(
        None,
        metavar="N",
        help="MLP widths are multiples of this",
        doc="MLP widths are multiples of this. By default the largest power of two up to 1/32 of the width, at most "
        "256: see `optimum_ishrink.planning.multiples.default_multiple`.",
        default_help="depends on the width",
    )
    for_runtime: str | None = option(
        None,
        metavar="NAME",
        choices=tuple(RUNTIMES),
        label="runtime",
        help="llama.cpp: MLP widths in multiples of 256, for its K-quants, or else of 32",
        doc="`llama.cpp` makes MLP widths multiples of 256, which its K-quants need, or where that misses the target "
        "or costs more quality, of 32, which its plain quantisations need.",
    )
    keep_first_layers: int | None = option(
        None,
        ge=0,
        metavar="N",
        help="protected layers at the beginning",
        doc="Layers at the beginning that are never removed. By default four, in shallow models a quarter.",
        default_help="4, or 1/4",
    )
    keep_last_layers: int | None = option(
        None,
        ge=0,
        metavar="N",
        help="protected layers at the end",
        doc="Layers at the end that are never removed. By default two, in shallow models an eighth.",
        default_help="2, or 1/8",
    )
    merge_key_value_heads: bool = option(
        False,
        help="merge KV heads into means instead of removing them",
        doc="Merge KV heads into means instead of removing them; all query heads are retained.",
    )
    merge_experts: bool = option(
        False,
        help="merge dropped experts into the retained ones that are most like them",
        doc="Merge every expert that is dropped into the retained one whose mean output is closest: the weights "
        "become means, weighted by how often the router picks each expert. Needs an `expert_importance` that reads "
        "text.",
    )
    allow_class_change: bool = option(
        False,
        help="write a shape that the class refuses as another class that computes the same",
        doc="Write a shape that the model's own class refuses as another class that computes the same, such as "
        "mistral for llama.",
    )

    def check_together(self) -> None:
        """Check that a profile is read by something.

        Raises:
            RequestError: The target limits no time.
        """
        if self.profile is not None and not limits_time(self.target):
            raise RequestError(
                "profile says what a device takes, and the target limits no time; leave it out, or name a target such "
                "as decode=+20% or ttft=-20%"
            )

    @property
    def shape(self) -> dict[str, int]:
        """The dimensions that are given, by config key."""
        return {key: getattr(self, key) for key in DIMENSIONS if getattr(self, key) is not None}

    def protection(self, num_layers: int, first_layers: int = 0) -> tuple[int, int]:
        """Return how many first and last layers are protected.

        Args:
            num_layers: Layers of the model.
            first_layers: First layers that the model itself cannot do without.
        """
        first, last = default_protection(num_layers)
        return (
            max(first_layers, first if self.keep_first_layers is None else self.keep_first_layers),
            last if self.keep_last_layers is None else self.keep_last_layers,
        )
