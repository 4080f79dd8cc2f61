"""The phone page of models: checkpoints are exported first, GGUF files are taken as they are."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..app.model_file import ModelFile, read_model_file
from ..app.options import PAGE_QUANTIZATION, AppOptions
from ..app.site import Site, WriteProbes, check_site, write_site
from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..configuration import IShrinkConfig
from ..core.output import check_not_inside
from ..core.progress import note
from ..edge.export import export
from ..edge.gguf_quantizations import GGUF_QUANTIZATIONS, parse_gguf_quantization
from ..edge.llama_cpp import find_model
from ..edge.options import ExportOptions
from ..errors import RequestError
from ..report.origin import Origin
from ..report.run import read_run
from ..search.options import ProfileOptions
from ..search.profiling import write_profile_probes
from .output_folder import expanded


def make_app(
    model: str | Path | Source,
    base: str | Path | Source | None,
    output: str | Path,
    options: AppOptions,
    *,
    overwrite: bool = False,
    revision: str | None = None,
    config: IShrinkConfig | None = None,
) -> Site:
    """Write a site that chats with a model, beside its base where one is given, and times them in a browser.

    Args:
        model: A GGUF file, a checkpoint folder or a Hub id.
        base: The same of the base, or None.
        output: The site's folder; it appears whole or not at all.
        options: What the site holds.
        overwrite: Replace what is in the folder.
        revision: Branch, tag or commit of the model on the Hub.
        config: Which tokens stay in the smaller vocabularies of a cost profile; the defaults when None.

    Returns:
        The site.

    Raises:
        RequestError: The page is not built, or the request cannot be met.
        SourceError: A model cannot be opened, or a browser could not run it.
        VerificationError: An export does not agree with its checkpoint; nothing was written.
    """
    folder = expanded(output)
    check_site(folder, overwrite)
    given = {"shrunk": model} if base is None else {"shrunk": model, "base": base}
    opened = {
        role: each if isinstance(each, Source) else find_model(each, revision=revision if role == "shrunk" else None)
        for role, each in given.items()
    }
    sources = {role: each for role, each in opened.items() if isinstance(each, Source)}
    check_not_inside(folder, [each.folder if isinstance(each, Source) else each for each in opened.values()])
    files = {role: read_model_file(each) for role, each in opened.items() if isinstance(each, Path)}
    quantization = _quantization(options, files, sources)
    write_probes = _probes(sources, config or IShrinkConfig()) if options.probes else None
    if base is None and "shrunk" in sources:
        _suggest_base(sources["shrunk"])
    with tempfile.TemporaryDirectory(prefix="ishrink-app-") as place:
        exported: dict[Path, ModelFile] = {}
        for role, source in sources.items():
            if source.folder not in exported:  # base and shrunk model can be the same
                exported[source.folder] = _export(source, quantization, options, Path(place) / role)
            files[role] = exported[source.folder]
        return write_site(files, folder, options, overwrite=overwrite, write_probes=write_probes)


def _quantization(options: AppOptions, files: Mapping[str, ModelFile], sources: Mapping[str, Source]) -> str:
    """Return what checkpoints are exported as.

    Raises:
        RequestError: There is no such quantisation, or no checkpoint.
    """
    if options.quantization is not None:
        if not sources:
            raise RequestError(
                "--quantization is what checkpoints are exported as, and GGUF files are taken as they are; leave it "
                "out, or name a checkpoint"
            )
        return parse_gguf_quantization(options.quantization).name
    found = {file.quantization for file in files.values()} & GGUF_QUANTIZATIONS.keys()
    return found.pop() if found else PAGE_QUANTIZATION


def _export(source: Source, quantization: str, options: AppOptions, folder: Path) -> ModelFile:
    folder.mkdir()
    path = folder / f"{source.display_name.split('/')[-1]}-{quantization}.gguf"
    export(source, ExportOptions(quantization=quantization, verify=options.verify), path)
    return read_model_file(path, source.folder)


def _probes(sources: Mapping[str, Source], config: IShrinkConfig) -> WriteProbes:
    """Return what writes the probes of the base, whose parts a search chooses from.

    Raises:
        RequestError: There is no checkpoint.
    """
    source = sources.get("base") or sources.get("shrunk")
    if source is None:
        raise RequestError(
            "--probes are made of a checkpoint, whose sizes a search chooses from; name the unpruned one as --base, "
            "or as --model"
        )
    found = source
    return lambda folder: write_profile_probes(Session(found, config), config, ProfileOptions(), folder)


def _suggest_base(source: Source) -> None:
    """Say how to show the model that a checkpoint was cut from beside it."""
    plan, report = read_run(source.folder)
    if plan is not None:
        origin = Origin() if report is None else report.origin or Origin()
        note(
            f"the site has this model alone; with --base {origin.base_model or plan.model} it is shown beside its base"
        )
