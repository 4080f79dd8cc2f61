"""What a search needs of a model, its types and this machine, checked before any long work."""

from __future__ import annotations

from collections.abc import Sequence

from ..architectures.binding import Binding
from ..checkpoint.source import Source
from ..core.progress import note
from ..edge.gguf_export import check_runs
from ..edge.gguf_quantizations import PLAIN_BLOCK, PROGRAM_TYPES, TENSOR_TYPES, fits
from ..edge.programs import check_program
from ..edge.row_fallbacks import matrices
from ..errors import RequestError, ShapeError


def check_model(source: Source, types: Sequence[str]) -> None:
    """Check that types can be chosen for a model's matrices, and that llama.cpp runs it as transformers does.

    Args:
        source: The model.
        types: Names of the types to choose from.

    Raises:
        RequestError: The model has experts, `llama-quantize` is needed and missing, or llama.cpp would run the model
            otherwise.
        ShapeError: A type fits no matrix, or a matrix no type.
    """
    check_dense(source.binding)
    check_program([name for name in types if name in PROGRAM_TYPES])
    check_types(source.binding, types)
    source.check()
    check_runs(source)


def check_dense(binding: Binding) -> None:
    """Check that a model has no experts: llama.cpp stores them otherwise than the checkpoint.

    Args:
        binding: The model.

    Raises:
        RequestError: It has.
    """
    if "experts" in binding.sizes:
        raise RequestError(
            f"{binding.description.model_type} is a mixture of experts, whose types cannot be chosen matrix by matrix "
            "yet; shrink it with `ishrink shrink` and export it with one quantization, such as q8_0"
        )


def check_types(binding: Binding, types: Sequence[str]) -> None:
    """Check that every type fits a matrix and every matrix a type; say which fit only some, and what stays in 16 bits.

    Args:
        binding: The model.
        types: Names of the types to choose from.

    Raises:
        ShapeError: A type fits no matrix, or a matrix no type.
    """
    found = matrices(binding)
    for each in found:
        if not any(fits(each.row, name) for name in types):
            raise ShapeError(
                f"the rows of {each.name} have {each.row:,} weights, which blocks of 256 do not divide: none of "
                f"{', '.join(types)} can store them; name q8_0, q5_0 or q4_0 as well"
            )
    odd = tuple(each.name for each in found if each.row % PLAIN_BLOCK)
    if odd and any(TENSOR_TYPES[name].block > 1 for name in types):
        note(f"{_brief(odd)} stay in 16 bits: their rows are no multiples of {PLAIN_BLOCK} weights")
    some: dict[tuple[str, ...], list[str]] = {}
    for name in types:
        able = tuple(each.name for each in found if fits(each.row, name))
        if not able:
            rows = ", ".join(f"{row:,}" for row in sorted({each.row for each in found}))
            raise ShapeError(
                f"{name} fits no matrix of this model: it needs rows that are multiples of 256, and these have {rows} "
                f"weights; leave out {name}"
            )
        if len(able) < len(found):
            some.setdefault(able, []).append(name)
    for able, names in some.items():
        others = tuple(each.name for each in found if each.name not in able)
        which = f"only {_brief(able)}" if len(able) < len(others) else f"all but {_brief(others)}"
        note(f"{' and '.join(names)} fit {which}, by rows that are multiples of 256 weights")


def _brief(names: Sequence[str]) -> str:
    """Return what matrices are called within a layer."""
    return ", ".join(name.removesuffix(".weight").rsplit(".", 1)[-1] for name in names)
