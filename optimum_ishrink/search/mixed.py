"""A model as it is, in a file of so many bytes: every matrix in its own type."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..edge.agreement import Agreement
from ..edge.gguf_export import GgufExport, check_export, verify_file
from ..edge.gguf_file import read_gguf
from ..edge.gguf_quantizations import GGUF_QUANTIZATIONS
from ..edge.gguf_tokenizer import find_gguf_tokenizer
from ..edge.options import ExportOptions
from ..errors import RequestError, ShapeError
from ..planning.limits import BYTES, parse_limits, readable
from ..report.search import types_by_kind
from ..text.calibration import Calibration
from .allocation import Allocator, Budget
from .damage import DamageModel
from .making import Maker, write_base_file, write_mixed_file
from .measured_damage import Measuring, measure_types
from .requirements import check_model
from .store import Store
from .template import read_template
from .text_divergence import Reference
from .turns import Workload

WINDOWS, LENGTH = 8, 128
"""Text that types are chosen on."""


def export_mixed(
    session: Session, config: IShrinkConfig, options: ExportOptions, output: Path, *, overwrite: bool = False
) -> GgufExport:
    """Write a checkpoint as a GGUF file of so many bytes at most, and compare it in llama.cpp.

    Args:
        session: The run over the checkpoint.
        config: The text that types are chosen on: its calibration sources.
        options: The budget, and whether the file is compared.
        output: The file. It appears whole or not at all.
        overwrite: Replace an existing file.

    Raises:
        RequestError: The budget is not one of bytes, a tool is missing, the model has experts, or llama.cpp would run
            it otherwise.
        ShapeError: No allocation keeps the budget; the message says what the least is. A type fits no matrix.
        VerificationError: The written file is not the model of its 16 bits, or llama.cpp splits text otherwise.
    """
    limits = parse_limits(options.target or "")
    if [limit.metric for limit in limits] != [BYTES]:
        raise RequestError(f"a mixed export has a budget of bytes, such as bytes=80MB, not {options.target}")
    check_export(options, GGUF_QUANTIZATIONS["bf16"], output, overwrite=overwrite)
    source, types = session.source, options.mixed_types
    check_model(source, types)
    tokenizer = source.load_tokenizer()
    told = find_gguf_tokenizer(source.folder, tokenizer, options.pre_tokenizer)
    with tempfile.TemporaryDirectory(prefix="ishrink-mixed-") as name:
        folder = Path(name)
        exact = folder / "base.gguf"
        write_base_file(source, exact, options.pre_tokenizer)
        template = read_template(exact, source.binding)
        drawn = Calibration(
            config.replace(calibration_samples=max(WINDOWS, len(config.calibration)), calibration_length=LENGTH),
            session,
        )
        maker = Maker(session, config, drawn, folder)
        reference = Reference(session.model, drawn.windows, source.display_name)
        store = Store(folder / "measured", {})  # an empty folder: a store empties one that it does not know
        found_types, _ = measure_types(Measuring(template, maker, reference, store), types)
        damage = DamageModel(dict(source.binding.shape), {}, found_types)
        allocator = Allocator(template, damage, None, Workload(), types)
        found = allocator.path(source.binding.shape)
        whole = found.candidate(len(found) - 1).figures
        best = found.best(Budget(limits, whole))
        if best is None:
            least = found.candidate(0).figures[BYTES]
            raise ShapeError(
                f"no types of {', '.join(types)} keep {limits[0].text}: the smallest file has "
                f"{readable(BYTES, least)}; `ishrink search` prunes as well"
            )
        agreements: list[Agreement] = []

        def check(path: Path) -> None:
            agreements.append(verify_file(source, tokenizer, path, exact, told, options.threads))

        general = template.general(source.binding.shape)
        write_mixed_file(
            exact,
            best.recipe.types,
            output,
            general=general,
            overwrite=overwrite,
            check=check if options.verify else None,
        )
    file = read_gguf(output)
    return GgufExport(
        path=output,
        model=source.display_name,
        params=file.params,
        nbytes=file.nbytes,
        quantization=_named(types_by_kind(best.recipe.types)),
        architecture=file.architecture,
        agreement=agreements[0] if agreements else None,
    )


def _named(kinds: Mapping[str, str]) -> str:
    """Return the types in words, such as `mixed: token_embd q4_0, attn_v q8_0 (15), q5_0 (15)`."""
    return "mixed: " + ", ".join(f"{kind} {types}" for kind, types in kinds.items())
