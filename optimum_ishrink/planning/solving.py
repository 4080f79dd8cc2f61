"""The shape that meets a target with the least expected damage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import product

from ..architectures.binding import Binding
from ..architectures.description import EXPERTS, NEURONS, ROWS, TOP_K
from ..architectures.shape_check import check_shape
from ..errors import ShapeError
from .row_choices import RowChoices
from .runtime_check import ADVICE, RuntimeCheck
from .target import Target

_SENSITIVITY = {
    "intermediate_size": (0.1, 0.6),
    "num_experts": (0.1, 0.4),
    "num_hidden_layers": (0.6, 0.0),
    "num_key_value_heads": (0.0, 4.0),
}
"""Damage of removing a share of each dimension: its factors of the share and of the share squared.

The least important neurons are removed first, and compensation makes up for the first of them, so removing twice as
many does more than twice the damage. A layer is removed as a whole: the second does as much damage as the first. On
SmolLM2-135M-Instruct with compensation, the KL divergences of 30 layers of 1,152 neurons, 29 of 1,216 and 27 of 1,344
(14.8, 14.9 and 14.6 % of the parameters removed) are as 1 : 1.07 : 1.19, which a factor of 0.6 for the depth explains;
an eighth of the neurons raised bits per byte by 0.45 of what a quarter did. One of its three KV groups, with its query
heads, cost three to four times as much per share squared as a quarter of the neurons did. Query heads are removed with
their group and count there. Experts were not measured here: they count somewhat less than neurons, because REAP
(arXiv:2510.13999) reports that a quarter of the experts of a mixture costs it about a hundredth of its scores.
"""

_EXPERT_STEPS = 8
"""Numbers of experts that are considered beside widths, at most: the width can meet a target as nearly as need be."""

_EXTRA_TOKENS = 1.4
"""Damage of one more token per token of text, on the scale of `_SENSITIVITY`.

On SmolLM2-135M-Instruct one percent more tokens raised bits per byte by 1.7 to 3.0 % on four texts, a quarter of the
neurons by 11 %, which is a damage of 0.0625 (see docs/experiments/vocabulary.md).
"""

TOLERANCE = 0.005
"""Accepted difference between the share of parameters, or of memory, that is removed and the requested share."""


def candidates(
    binding: Binding,
    fixed: Mapping[str, int],
    multiple: int,
    protected: int,
    rows: RowChoices | None = None,
    target: Target | None = None,
) -> Iterator[tuple[dict[str, int], int]]:
    """Yield shapes that the architecture can express, with their numbers of parameters.

    They are all but for the vocabulary: of its sizes, the model's own, the one without rows that have no token, and
    the two that come nearest to the target.

    Args:
        binding: The model.
        fixed: Dimensions whose size is given.
        multiple: What MLP widths are multiples of.
        protected: Number of protected layers, which cannot be removed.
        rows: The sizes that the vocabulary can have; None where it does not change.
        target: What is wanted; None where the vocabulary does not change.
    """
    choices: dict[str, list[int]] = {}
    per_row = binding.outer_parameters(binding.resized({ROWS: 2})) - binding.outer_parameters(
        binding.resized({ROWS: 1})
    )
    for key, size in binding.shape.items():
        if key in ("num_attention_heads", TOP_K, ROWS):
            continue  # query heads follow their KV groups unless their number is given
        if key in fixed:
            choices[key] = [fixed[key]]
        elif binding.description.dimensions[key].fixed:
            choices[key] = [size]
        elif key == "intermediate_size":
            choices[key] = sorted({*range(multiple, size + 1, multiple), size})
        elif key == EXPERTS:
            alone = NEURONS in fixed or binding.description.dimensions[NEURONS].fixed is not None
            choices[key] = _expert_counts(binding, fixed.get(TOP_K), None if alone else _EXPERT_STEPS)
        elif key == "num_hidden_layers":
            choices[key] = list(range(max(1, protected), size + 1))
        else:
            choices[key] = [value for value in range(1, size + 1) if binding.refusal({key: value}) is None]
    whole = {key: fixed.get(key, binding.shape[key]) for key in (EXPERTS, TOP_K) if key in binding.shape}
    for kv in choices["num_key_value_heads"]:
        for width, experts in product(choices["intermediate_size"], choices.get(EXPERTS, [0])):
            inner = {"num_key_value_heads": kv, "intermediate_size": width, **whole}
            if experts:
                inner[EXPERTS] = experts
            if "num_attention_heads" in fixed:
                inner["num_attention_heads"] = fixed["num_attention_heads"]
            sizes = binding.resized(inner)
            inner["num_attention_heads"] = sizes["heads"]
            total = binding.outer_parameters(sizes)
            for depth, count in enumerate(binding.layer_parameters(sizes), start=1):
                total += count
                if depth not in choices["num_hidden_layers"]:
                    continue
                shape = {"num_hidden_layers": depth, **inner, ROWS: binding.shape[ROWS]}
                missing = 0.0
                if target is not None:
                    each_row = target.cost.per_parameter * per_row
                    over = target.amount - target.cost.of(binding, shape, total)
                    missing = over / each_row if each_row else 0.0
                for size in _vocabulary_sizes(binding.shape[ROWS], fixed, rows, missing):
                    removed = (binding.shape[ROWS] - size) * per_row
                    yield {**shape, ROWS: size}, total - removed


def _expert_counts(binding: Binding, top_k: int | None, most: int | None) -> list[int]:
    """Return the numbers of experts to consider, ascending.

    Args:
        binding: The model.
        top_k: How many each token is routed to; None where that does not change.
        most: How many numbers to consider at most; None for all.
    """
    size, groups = binding.shape[EXPERTS], binding.expert_groups
    step = groups if most is None else -(-max(1, size // most) // groups) * groups
    routed = {} if top_k is None else {TOP_K: top_k}
    counts = range(size % step or step, size + 1, step)
    return [count for count in counts if binding.refusal({EXPERTS: count, **routed}) is None]


def _vocabulary_sizes(
    current: int, fixed: Mapping[str, int], rows: RowChoices | None, missing: float
) -> Collection[int]:
    """Return the sizes of the vocabulary to consider; `missing` rows would have to be added to meet the target."""
    if ROWS in fixed or rows is None:
        return (fixed.get(ROWS, current),)
    return {current, rows.free, *rows.around(current + missing)}


def damage(shape: Mapping[str, int], original: Mapping[str, int], rows: RowChoices | None = None) -> float:
    """Return the expected damage of a shape, summed over what is removed of each dimension.

    Args:
        shape: The new shape.
        original: The model's.
        rows: What a smaller vocabulary costs; None where it counts nothing.
    """
    shares = {key: 1 - value / original[key] for key, value in shape.items()}
    found = sum(
        once * shares[key] + squared * shares[key] ** 2
        for key, (once, squared) in _SENSITIVITY.items()
        if key in shares
    )
    return found + (0.0 if rows is None or ROWS not in shape else _EXTRA_TOKENS * rows.extra(shape[ROWS]))


def solve(
    binding: Binding,
    target: Target,
    fixed: Mapping[str, int],
    multiple: int,
    protected: int,
    pruned: Collection[str] = (),
    runtime: RuntimeCheck | None = None,
    rows: RowChoices | None = None,
) -> dict[str, int]:
    """Return the shape that meets a target with the least expected damage.

    Args:
        binding: The model.
        target: What to reach.
        fixed: Dimensions whose size is given.
        multiple: What MLP widths are multiples of.
        protected: Number of protected layers, which cannot be removed.
        pruned: Dimensions that have to become smaller.
        runtime: What has to be able to run the shape; None for PyTorch, which runs them all.
        rows: The sizes that the vocabulary can have; None where it does not change.

    Raises:
        ShapeError: The runtime runs no such shape, or no shape is within half a percentage point; the message names
            the nearest above and below.
    """
    check_shape(binding, fixed)
    share = 1 - target.amount / target.whole
    best: tuple[float, dict[str, int]] | None = None
    nearest: dict[bool, tuple[float, dict[str, int], float]] = {}
    refused: str | None = None

    def runs(shape: Mapping[str, int]) -> bool:
        nonlocal refused
        reason = None if runtime is None else runtime.refusal(shape)
        refused = refused or reason
        return reason is None

    for shape, count in candidates(binding, fixed, multiple, protected, rows, target):
        if any(shape[key] == binding.shape[key] for key in pruned):
            continue
        value = target.cost.of(binding, shape, count)
        cut = 1 - value / target.whole
        allowed = not target.at_most or value <= target.amount
        if abs(cut - share) <= TOLERANCE and cut > 0 and allowed:
            # Damage grows with the square of what is cut: without the ratio, the smallest cut would always win.
            cost = damage(shape, binding.shape, rows) * (share / cut) ** 2
            if (best is None or cost < best[0]) and runs(shape):
                best = (cost, shape)
        side = value < target.amount
        if (side not in nearest or abs(cut - share) < nearest[side][0]) and runs(shape):
            nearest[side] = (abs(cut - share), shape, value)
    if best is not None:
        return best[1]
    if not nearest and refused is not None:
        raise ShapeError(f"{refused}; {ADVICE}")
    options = []
    for _, shape, value in nearest.values():
        named = " ".join(f"{key}={size}" for key, size in shape.items())
        options.append(f"{named} ({target.cost.words(value)}, {target.cost.change(value, target.whole)})")
    raise ShapeError(
        f"no shape lies within {TOLERANCE:.1%} of {target.text!r} ({target.cost.words(target.amount)}); "
        f"nearest: {'; '.join(options) or 'none, for what may change cannot become smaller'}"
        + ("" if refused is None else f"; others are ruled out, for instance because {refused}")
    )
