"""The zero-out analysis, from a session to its artifact: what is measured, in which order, and what is kept when.

Source: D. Gebre, iShrink, MSc thesis, MBZUAI 2025: quality against sparsity before anything is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..architectures.spec import Binding
from ..checkpoint.fingerprint import model_fingerprint
from ..checkpoint.session import Session, check_request
from ..core.json_files import write_json
from ..core.output import check_not_inside, check_output, staged_folder
from ..core.progress import note, progress_bar
from ..evaluation.environment import environment
from ..evaluation.harness import evaluate_tasks, open_tasks
from ..importance.stage import score
from ..planning.plan import resolve_shape
from ..report.files import ANALYSIS_FILE
from ..report.measurement import Measurement
from ..text.calibration import further_windows
from ..text.sources import label_sources, parse_sources
from .advice import Advice, advise
from .advised_command import advised_command
from .divergence import Advance, Reference, measure_masked
from .masking import mask_removal, together
from .plots import draw_sensitivity, draw_sparsity
from .record import Analysis, SparsityLevel
from .request import AnalysisRequest
from .saved_state import State
from .sensitivity import measure_layers
from .zeroing import (
    GROUPS,
    KINDS,
    LAYERS,
    NEURONS,
    Removal,
    check_levels,
    choose_removal,
    kinds_of,
    removed_parameters,
)

_WINDOWS = "windows"


def analyze(
    session: Session, request: AnalysisRequest, output: Path | None = None, *, overwrite: bool = False
) -> Analysis:
    """Measure quality against sparsity, and the sensitivity of every layer.

    Every finished measurement is kept in `OUTPUT.partial` at once; the same request goes on from there.

    Args:
        session: The run; the analysis reads its criteria, calibration, tasks, protected layers, seed, dtype, device.
        request: What is measured.
        output: The output folder; it appears whole or not at all. None writes nothing.
        overwrite: Replace what is in the output folder.

    Returns:
        The analysis.

    Raises:
        RequestError: The request cannot be met.
        KeyboardInterrupt: It was interrupted; the message says what is kept.
    """
    config, source = session.config, session.source
    texts = parse_sources(request.text or config.calibration)
    check_request(config, measure=False)
    for text in texts:
        if text.path is not None:
            next(iter(text.documents()))
    partial_folder = None
    if output is not None:
        check_output(output, overwrite)
        partial_folder = output.resolve().with_name(output.resolve().name + ".partial")
        check_output(partial_folder, overwrite=True)
        files = [text.path for text in (*texts, *parse_sources(config.calibration)) if text.path]
        for folder in (output, partial_folder):
            check_not_inside(folder, [source.folder, Path(source.name), *files])
    check_levels(source.binding, request.shares, config.request.protection(source.binding.sizes["layers"]))
    if config.tasks:
        open_tasks(config.tasks, config.include_path, config.num_fewshot)
    state = State(partial_folder, identity(session, request))
    try:
        analysis = _measure(session, request, state)
        if output is not None:
            with staged_folder(output, overwrite=overwrite) as folder:
                write_analysis(analysis, folder)
    except KeyboardInterrupt:
        if not state.is_kept:
            raise
        raise KeyboardInterrupt(
            f"{state.count} measurements are kept in {state.folder}; run the same command again to go on"
        ) from None
    state.remove()
    return analysis


def write_analysis(analysis: Analysis, folder: Path) -> None:
    """Write `analysis.json` and its figures.

    Args:
        analysis: The analysis.
        folder: An existing folder.
    """
    write_json(folder / ANALYSIS_FILE, analysis.to_json())
    (folder / "figures").mkdir()
    draw_sparsity(analysis, folder / "figures" / "sparsity.png")
    draw_sensitivity(analysis, folder / "figures" / "sensitivity.png")


def _settings(session: Session, request: AnalysisRequest) -> dict[str, Any]:
    """Return what the analysis says of how it was made; files go by their own names."""
    config = session.config
    calibration, texts = parse_sources(config.calibration), parse_sources(request.text or config.calibration)
    return {
        "levels": list(request.shares),
        "importance": config.importance,
        "layer_importance": config.layer_importance,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "protected_layers": list(config.request.protection(session.source.binding.sizes["layers"])),
        "calibration": {
            "sources": [text.label for text in calibration],
            "fingerprints": [text.fingerprint() for text in calibration],
            "samples": config.calibration_samples,
            "length": config.calibration_length,
        },
        "text": {
            "sources": label_sources(texts),
            "fingerprints": [text.fingerprint() for text in texts],
            "samples": request.samples,
            "length": request.length,
        },
        "tasks": list(config.tasks),
        "num_fewshot": config.num_fewshot,
    }


def identity(session: Session, request: AnalysisRequest) -> dict[str, Any]:
    """Return everything that the measurements depend on."""
    place = environment(session.device, session.dtype)
    return {
        "model": model_fingerprint(session.source),
        "settings": _settings(session, request),
        "include_path": session.config.include_path,
        "versions": place["versions"],
        "device": place["accelerator"] or place["device"],
        "dtype": place["dtype"],
    }


def _label(session: Session, request: AnalysisRequest) -> str:
    """Name the text that is measured on."""
    texts = parse_sources(request.text or session.config.calibration)
    return ("" if request.text else "further windows of ") + ", ".join(label_sources(texts))


def _inputs(session: Session, request: AnalysisRequest) -> dict[str, torch.Tensor]:
    """Return the scores by config key, and the windows to measure on."""
    config = session.config
    windows = further_windows(
        parse_sources(request.text or config.calibration),
        session.model,
        session.tokenizer,
        samples=request.samples,
        length=request.length,
        seed=config.seed,
        calibrated=parse_sources(config.calibration),
        calibration_samples=config.calibration_samples,
        calibration_length=config.calibration_length,
    )
    return {**score(session, (LAYERS, GROUPS, NEURONS)), _WINDOWS: windows}


def _measure(session: Session, request: AnalysisRequest, state: State) -> Analysis:
    config, source = session.config, session.source
    binding = source.binding
    total_layers = binding.sizes["layers"]
    planned = [(kind, share) for kind in KINDS for share in request.shares]
    total = len(planned) + total_layers
    if state.inputs:
        note(f"going on in {state.folder}: {state.count} of {total} measurements are there")
    if not state.inputs:
        state.keep_inputs(_inputs(session, request))
    scores = {key: values for key, values in state.inputs.items() if key != _WINDOWS}
    label = _label(session, request)
    protection = config.request.protection(total_layers)
    removals = {
        (kind, share): choose_removal(binding, scores, kinds_of(binding)[kind], share, protection)
        for kind, share in planned
    }
    # Several levels may come to the same units, and level 0 is the same for every kind: each is measured once.
    known = {removals[key]: level.quality for key, level in state.levels.items()}
    missing = {removal for key, removal in removals.items() if key not in state.levels and removal not in known}
    layers = [layer for layer in range(total_layers) if layer not in state.layers]
    if missing or layers or state.count < total:
        reference = Reference(session.model, state.inputs[_WINDOWS])
        steps = (len(missing) + 3 * len(layers)) * request.samples
        with progress_bar("zero-out", steps) as advance:
            for kind, share in planned:
                removal = removals[kind, share]
                if removal not in known:
                    known[removal] = _quality(session, reference, removal, label, advance)
                if (kind, share) not in state.levels:
                    state.add_level(_level(binding, kind, share, removal, known[removal]))
            for found in measure_layers(reference, binding, layers, label, advance=advance):
                state.add_layer(found)
    return _analysis(session, request, state, planned)


def _quality(
    session: Session, reference: Reference, removal: Removal, label: str, advance: Advance
) -> tuple[Measurement, ...]:
    """Measure texts and tasks with a removal at zero."""
    config = session.config
    masks = mask_removal(session.model, session.source.binding, removal)
    whole = not removal.units
    found = measure_masked(reference, lambda _: masks, label, whole=whole, advance=advance)
    if not config.tasks:
        return found
    with together(masks):
        return found + evaluate_tasks(
            session.model,
            session.tokenizer,
            config.tasks,
            open_tasks(config.tasks, config.include_path),
            num_fewshot=config.num_fewshot,
            batch_size=config.batch_size,
            seed=config.seed,
        )


def _level(
    binding: Binding, kind: str, share: float, removal: Removal, quality: tuple[Measurement, ...]
) -> SparsityLevel:
    removed = removed_parameters(binding, removal)
    return SparsityLevel(kind, share, removal.units, removed, removed / binding.num_parameters(), quality)


def _analysis(session: Session, request: AnalysisRequest, state: State, planned: list[tuple[str, float]]) -> Analysis:
    source, binding = session.source, session.source.binding
    analysis = Analysis(
        model=session.base_name,
        revision=source.revision,
        model_type=binding.description.model_type,
        num_parameters=binding.num_parameters(),
        settings={**_settings(session, request), "model_fingerprint": state.request["model"]},
        levels=tuple(state.levels[key] for key in planned),
        sensitivity=tuple(state.layers[layer] for layer in range(binding.sizes["layers"])),
        notes=_notes(binding),
        max_divergence=request.max_divergence,
        advice="",
        changes={},
        finer_levels=(),
        command="",
        environment=environment(session.device, session.dtype),
    )
    advice = _advise(session, analysis)
    return replace(
        analysis,
        advice=advice.text,
        changes=advice.changes,
        finer_levels=advice.finer_levels,
        command=_command(session, request, advice),
    )


def _notes(binding: Binding) -> tuple[str, ...]:
    """Return what a reader must know: kinds that are measured but cannot be cut, and cuts that are not zero-outs."""
    notes = []
    for kind, keys in KINDS.items():
        dimension = binding.description.dimensions[keys[0]]
        if kind != "all" and dimension.fixed:
            notes.append(f"{kind} is measured, but cannot be cut and is not in 'all': {dimension.fixed}")
        elif kind != "all" and dimension.inexact:
            notes.append(f"a cut of {kind} gives other predictions than zero-out: {dimension.inexact}")
    return tuple(notes)


def _advise(session: Session, analysis: Analysis) -> Advice:
    config, binding = session.config, session.source.binding

    def check(changes: Mapping[str, Any]) -> None:
        resolve_shape(binding, config.replace(**changes).request)

    return advise(
        analysis.kinds(),
        analysis.sensitivity,
        analysis.max_divergence,
        shape=binding.shape,
        protection=config.request.protection(binding.sizes["layers"]),
        can_cut=lambda kind: binding.description.dimensions[KINDS[kind][0]].fixed is None,
        check=check,
    )


def _command(session: Session, request: AnalysisRequest, advice: Advice) -> str:
    """Return the command line that the advice amounts to, as it can be published: files go by their own names."""
    source = session.source
    extra = ["--gguf-file", source.gguf_file] if source.gguf_file else []
    extra += ["--revision", source.revision] if source.revision else []
    text = (
        None
        if request.text is None
        else tuple(each.path.name if each.path else each.text for each in parse_sources(request.text))
    )
    portable = replace(request, text=text)
    config = session.config.portable()
    return advised_command(config, portable, advice.changes, advice.finer_levels, source.display_name, *extra)
