"""A model as it is, in a GGUF file of its own making: a type for every matrix, or values that fit the text."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..edge.agreement import Agreement
from ..edge.gguf_export import GgufExport, check_export, verify_file
from ..edge.gguf_file import read_gguf
from ..edge.gguf_quantizations import GGUF_QUANTIZATIONS
from ..edge.gguf_tokenizer import find_gguf_tokenizer
from ..edge.options import CALIBRATED_ROUNDING, ExportOptions
from ..edge.recovered_for import note_recovered_for, trained_types
from ..edge.row_fallbacks import check_rows
from ..errors import RequestError, ShapeError
from ..planning.limits import BYTES, Limit, parse_limits, readable
from ..report.search import types_by_kind
from ..text.calibration import Calibration
from ..text.sources import parse_sources
from .allocation import Allocator, Budget
from .damage import DamageModel
from .gguf_files import write_base_file, write_mixed_file
from .making import Maker
from .measured_damage import Measuring, measure_types
from .recipe import plain_types
from .requirements import check_model
from .rounding import Rounding
from .store import Store
from .template import Template, read_template
from .text_divergence import Reference, held_out_text
from .turns import Workload

WINDOWS, LENGTH = 8, 128
"""Text that types are chosen on."""


def export_chosen(
    session: Session, config: IShrinkConfig, options: ExportOptions, output: Path, *, overwrite: bool = False
) -> GgufExport:
    """Write a checkpoint as a GGUF file, and compare it in llama.cpp.

    With `quantization="mixed"` every matrix has its own type, and the file so many bytes at most. With calibrated
    rounding weights are rounded for what matrices compute on the calibration text.

    Args:
        session: The run over the checkpoint.
        config: The calibration text. Types are chosen on further windows of it.
        options: The quantisation and the budget, and whether the file is compared.
        output: The file. It appears whole or not at all.
        overwrite: Replace an existing file.

    Raises:
        RequestError: The budget is not one of bytes, a tool is missing, or llama.cpp would run the model otherwise.
        ShapeError: No allocation keeps the budget, and the message says what the least is; or the rows of a matrix do
            not fit the one type.
        VerificationError: The written file is not the model of its 16 bits, or llama.cpp splits text otherwise.
    """
    limits = parse_limits(options.target) if options.target is not None else ()
    if options.is_mixed and [limit.metric for limit in limits] != [BYTES]:
        raise RequestError(f"a mixed export has a budget of bytes, such as bytes=80MB, not {options.target}")
    check_export(options, GGUF_QUANTIZATIONS["bf16"], output, overwrite=overwrite)
    source = session.source
    types = options.mixed_types if options.is_mixed else (options.quantization_name.lower(),)
    if not options.is_mixed:
        check_rows(source.binding, GGUF_QUANTIZATIONS[types[0]])
    check_model(source, types)
    sources = parse_sources(config.calibration)
    for each in sources:
        each.check()
    tokenizer = source.load_tokenizer()
    told = find_gguf_tokenizer(source.folder, tokenizer, options.pre_tokenizer)
    note_recovered_for(source, options)
    with tempfile.TemporaryDirectory(prefix="ishrink-export-") as name:
        folder = Path(name)
        exact = folder / "base.gguf"
        write_base_file(source, exact, options.pre_tokenizer)
        template = read_template(exact, source.binding)
        maker = Maker(session, config, Calibration(config, session), folder)
        trained = trained_types(source) if options.is_mixed else None
        calibrates = options.is_calibrated if trained is None else options.rounding == CALIBRATED_ROUNDING
        rounding = Rounding(template, maker, lambda _: exact) if calibrates else None
        if trained is not None:
            chosen: Mapping[str, str] = _within(trained, template, limits)
        elif options.is_mixed:
            text = held_out_text(session, config, sources, samples=max(WINDOWS, len(sources)), length=LENGTH)
            reference = Reference(session.model, text, source.display_name)
            store = Store(folder / "measured", {})  # an empty folder: a store empties one that it does not know
            chosen = _choose(Measuring(template, maker, reference, store, rounding), limits, types)
        else:
            chosen = plain_types(template, types[0])
        agreements: list[Agreement] = []

        def check(path: Path) -> None:
            agreements.append(verify_file(source, tokenizer, path, exact, told, options.threads))

        rounded = None
        if rounding is not None:
            rounded = rounding.rounded(maker.make(source.binding.shape), chosen)
        write_mixed_file(
            exact,
            chosen,
            output,
            general=template.general(source.binding.shape),
            rounded=rounded,
            overwrite=overwrite,
            check=check if options.verify else None,
        )
    file = read_gguf(output)
    return GgufExport(
        path=output,
        model=source.display_name,
        params=file.params,
        nbytes=file.nbytes,
        quantization=_named(types_by_kind(chosen)) if options.is_mixed else f"{types[0]}, calibrated rounding",
        architecture=file.architecture,
        agreement=agreements[0] if agreements else None,
    )


def _within(types: Mapping[str, str], template: Template, limits: Sequence[Limit]) -> Mapping[str, str]:
    """Return the types that a checkpoint was recovered for, once they keep a limit on bytes.

    Raises:
        RequestError: They do not.
    """
    size = template.nbytes(template.binding.shape, types)
    if not Budget(limits, {BYTES: template.nbytes(template.binding.shape, {})}).allows({BYTES: size}):
        raise RequestError(
            f"the types that the checkpoint was recovered for take {readable(BYTES, size)}, and the budget is "
            f"{limits[0].text}; raise it, or recover for another file"
        )
    return types


def _choose(measuring: Measuring, limits: Sequence[Limit], types: Sequence[str]) -> Mapping[str, str]:
    """Return the types that lose least under a limit on bytes."""
    layout = measuring.layout
    shape = layout.binding.shape
    found_types, _ = measure_types(measuring, types)
    allocator = Allocator(layout, DamageModel(dict(shape), {}, found_types), None, Workload(), types)
    found = allocator.path(shape)
    whole = found.candidate(len(found) - 1).figures
    best = found.best(Budget(limits, whole))
    if best is None:
        least = found.candidate(0).figures[BYTES]
        raise ShapeError(
            f"no types of {', '.join(types)} keep {limits[0].text}: the smallest file has "
            f"{readable(BYTES, least)}; `ishrink search` prunes as well"
        )
    return best.recipe.types


def _named(kinds: Mapping[str, str]) -> str:
    """Return the types in words, such as `mixed: token_embd q4_0, attn_v q8_0 (15), q5_0 (15)`."""
    return "mixed: " + ", ".join(f"{kind} {types}" for kind, types in kinds.items())
