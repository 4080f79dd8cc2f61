"""Target sizes as the user writes them, and the shape that meets one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ..architectures.binding import Binding
from ..architectures.description import ROWS
from ..architectures.shape_check import check_shape
from ..errors import RequestError, ShapeError
from .limits import BYTES, parse_limits
from .row_choices import RowChoices
from .runtime_check import ADVICE, RuntimeCheck

_SENSITIVITY = {
    "intermediate_size": (0.1, 0.6),
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
their group and count there.
"""

_EXTRA_TOKENS = 1.4
"""Damage of one more token per token of text, on the scale of `_SENSITIVITY`.

On SmolLM2-135M-Instruct one percent more tokens raised bits per byte by 1.7 to 3.0 % on four texts, a quarter of the
neurons by 11 %, which is a damage of 0.0625 (see docs/experiments/vocabulary.md).
"""

TOLERANCE = 0.005
"""Accepted difference between the share of parameters removed and the requested share."""

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}


@dataclass(frozen=True)
class Target:
    """A number of parameters to reach.

    Args:
        num_parameters: The number.
        text: The target as the user typed it.
        at_most: Whether no more than that number is allowed; else it is met as nearly as possible, from either side.
    """

    num_parameters: int
    text: str
    at_most: bool = False


def parse_target(text: str, num_parameters: int, parameter_bytes: int = 2) -> Target:
    """Parse `params=-15%` (15 % fewer), `params=115M`, or `bytes=230MB`, the most bytes that the weights may have.

    Args:
        text: What was typed.
        num_parameters: Parameters of the unpruned model.
        parameter_bytes: Bytes of a parameter in the checkpoint's dtype.

    Raises:
        ShapeError: The text has another form, the target is not smaller than the model, or it limits what only a
            runtime can tell.
    """
    if re.match(r"\s*(bytes|memory|decode|ttft)\s*=", text):
        return _of_limits(text, num_parameters, parameter_bytes)
    relative = re.fullmatch(r"params\s*=\s*-\s*(\d+(?:\.\d+)?)\s*%", text.strip())
    absolute = re.fullmatch(r"params\s*=\s*(\d+(?:\.\d+)?)\s*([KMGB]?)", text.strip(), re.IGNORECASE)
    if relative:
        count = round(num_parameters * (1 - float(relative[1]) / 100))
    elif absolute:
        count = round(float(absolute[1]) * _SUFFIXES[absolute[2].upper()])
    else:
        raise ShapeError(f"target {text!r} is not of the form 'params=-15%' or 'params=115M'")
    if not 0 < count < num_parameters:
        raise ShapeError(f"target {text!r} requests {count:,} parameters; the model has {num_parameters:,}")
    return Target(count, text)


def _of_limits(text: str, num_parameters: int, parameter_bytes: int) -> Target:
    """Return the target of a limit on the weights' bytes."""
    try:
        (limit, *others) = parse_limits(text)
    except RequestError as error:
        raise ShapeError(str(error)) from None
    if others or limit.metric != BYTES:
        named = next(each for each in (limit, *others) if each.metric != BYTES) if others else limit
        raise ShapeError(
            f"target {text!r} limits {named.metric}, which depends on the runtime and the types of the matrices: "
            "`ishrink search` meets it; shrink takes params or bytes, one of them"
        )
    whole = num_parameters * parameter_bytes
    most = limit.against(whole)
    if most >= whole:
        raise ShapeError(
            f"target {text!r} is no less than the weights' {whole:,} bytes: nothing has to be removed; for fewer "
            "bytes of a GGUF file, search or export with a quantization"
        )
    return Target(int(most // parameter_bytes), text, at_most=True)


def default_multiple(intermediate_size: int) -> int:
    """Return the default multiple of MLP widths: the largest power of two up to 1/32 of the width, at most 256.

    llama.cpp's K-quants need rows of multiples of 256, GPU kernels tile by 128 or 64, and the plain quantisations
    (q8_0, q4_0) have blocks of 32. The limit of 1/32 makes a step at most about 3 % of the neurons: at 1,536 neurons a
    step of 128 would be 5 % of all parameters, too coarse to meet a target, and a step of 32 is 1.2 %.

    Args:
        intermediate_size: Neurons of the model's MLP.
    """
    multiple = 1
    while multiple * 2 <= min(256, intermediate_size // 32):
        multiple *= 2
    return multiple


RUNTIMES = {"llama.cpp": (256, 32)}
"""Runtimes that a shape can be made for, each with the multiples that it needs in a row of weights, the best first.

llama.cpp's K-quants (q4_k_m and their like) share scales among 256 weights, its plain quantisations (q8_0, q4_0) among
32. Only the down projection has rows of MLP neurons; hidden size and heads set those of the other matrices.
"""


def multiples_to_try(intermediate_size: int, intermediate_multiple: int | None, for_runtime: str | None) -> list[int]:
    """Return the multiples that MLP widths can have, the best first.

    Args:
        intermediate_size: Neurons of the model's MLP.
        intermediate_multiple: The requested multiple, or None; it overrides everything else.
        for_runtime: One of `RUNTIMES`, or None.
    """
    if intermediate_multiple:
        return [intermediate_multiple]
    if for_runtime is None:
        return [default_multiple(intermediate_size)]
    return [multiple for multiple in RUNTIMES[for_runtime] if multiple <= intermediate_size] or [1]


def check_multiple(shape: Mapping[str, int], current: int, multiple: int) -> None:
    """Check that a new MLP width is a multiple that kernels and quantisers can use.

    Args:
        shape: The new shape.
        current: The width of the unpruned model, which is always allowed.
        multiple: The required multiple.

    Raises:
        ShapeError: It is not such a multiple; the message names the nearest widths.
    """
    width = shape.get("intermediate_size", current)
    if width == current or width % multiple == 0:
        return
    below, above = width // multiple * multiple, (width // multiple + 1) * multiple
    near = " or ".join(str(value) for value in (below, above) if 0 < value <= current)
    raise ShapeError(
        f"intermediate_size={width} is not a multiple of {multiple}, which kernels and quantisers need; use {near}, "
        "or set intermediate_multiple"
    )


def candidates(
    binding: Binding,
    fixed: Mapping[str, int],
    multiple: int,
    protected: int,
    rows: RowChoices | None = None,
    num_parameters: int = 0,
) -> Iterator[tuple[dict[str, int], int]]:
    """Yield shapes that the architecture can express, with their numbers of parameters.

    They are all but for the vocabulary: of its sizes, the model's own, the one without rows that have no token, and
    the two that come nearest to the wanted number of parameters.

    Args:
        binding: The model.
        fixed: Dimensions whose size is given.
        multiple: What MLP widths are multiples of.
        protected: Number of protected layers, which cannot be removed.
        rows: The sizes that the vocabulary can have; None where it does not change.
        num_parameters: The wanted number.
    """
    choices: dict[str, list[int]] = {}
    per_row = binding.outer_parameters(binding.resized({ROWS: 2})) - binding.outer_parameters(
        binding.resized({ROWS: 1})
    )
    for key, size in binding.shape.items():
        if key in ("num_attention_heads", ROWS):
            continue  # query heads follow their KV groups unless their number is given
        if key in fixed:
            choices[key] = [fixed[key]]
        elif binding.description.dimensions[key].fixed:
            choices[key] = [size]
        elif key == "intermediate_size":
            choices[key] = sorted({*range(multiple, size + 1, multiple), size})
        elif key == "num_hidden_layers":
            choices[key] = list(range(max(1, protected), size + 1))
        else:
            choices[key] = [value for value in range(1, size + 1) if binding.refusal({key: value}) is None]
    for kv in choices["num_key_value_heads"]:
        for width in choices["intermediate_size"]:
            inner = {"num_key_value_heads": kv, "intermediate_size": width}
            if "num_attention_heads" in fixed:
                inner["num_attention_heads"] = fixed["num_attention_heads"]
            sizes = binding.resized(inner)
            inner["num_attention_heads"] = sizes["heads"]
            total = binding.outer_parameters(sizes)
            for depth, count in enumerate(binding.layer_parameters(sizes), start=1):
                total += count
                if depth in choices["num_hidden_layers"]:
                    for size in _vocabulary_sizes(
                        binding.shape[ROWS], fixed, rows, (num_parameters - total) / per_row
                    ):
                        removed = (binding.shape[ROWS] - size) * per_row
                        yield {"num_hidden_layers": depth, **inner, ROWS: size}, total - removed


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
    removed: int = 0,
) -> dict[str, int]:
    """Return the shape that meets a target with the least expected damage.

    Args:
        binding: The model.
        target: The number of parameters to reach.
        fixed: Dimensions whose size is given.
        multiple: What MLP widths are multiples of.
        protected: Number of protected layers, which cannot be removed.
        pruned: Dimensions that have to become smaller.
        runtime: What has to be able to run the shape; None for PyTorch, which runs them all.
        rows: The sizes that the vocabulary can have; None where it does not change.
        removed: Parameters that the model has lost already.

    Raises:
        ShapeError: The runtime runs no such shape, or no shape is within half a percentage point; the message names
            the nearest above and below.
    """
    check_shape(binding, fixed)
    total = binding.num_parameters() + removed
    share = 1 - target.num_parameters / total
    best: tuple[float, dict[str, int]] | None = None
    nearest: dict[bool, tuple[float, dict[str, int], int]] = {}
    refused: str | None = None

    def runs(shape: Mapping[str, int]) -> bool:
        nonlocal refused
        reason = None if runtime is None else runtime.refusal(shape)
        refused = refused or reason
        return reason is None

    for shape, count in candidates(binding, fixed, multiple, protected, rows, target.num_parameters):
        if any(shape[key] == binding.shape[key] for key in pruned):
            continue
        cut = 1 - count / total
        allowed = not target.at_most or count <= target.num_parameters
        if abs(cut - share) <= TOLERANCE and cut > 0 and allowed:
            # Damage grows with the square of what is cut: without the ratio, the smallest cut would always win.
            cost = damage(shape, binding.shape, rows) * (share / cut) ** 2
            if (best is None or cost < best[0]) and runs(shape):
                best = (cost, shape)
        side = count < target.num_parameters
        if (side not in nearest or abs(cut - share) < nearest[side][0]) and runs(shape):
            nearest[side] = (abs(cut - share), shape, count)
    if best is not None:
        return best[1]
    if not nearest and refused is not None:
        raise ShapeError(f"{refused}; {ADVICE}")
    options = []
    for _, shape, count in nearest.values():
        named = " ".join(f"{key}={value}" for key, value in shape.items())
        options.append(f"{named} ({count:,} parameters, -{1 - count / total:.2%})")
    raise ShapeError(
        f"no shape lies within {TOLERANCE:.1%} of {target.text!r} ({target.num_parameters:,} parameters); "
        f"nearest: {'; '.join(options) or 'none, for what may change cannot become smaller'}"
        + ("" if refused is None else f"; others are ruled out, for instance because {refused}")
    )
