"""The zero-out analysis, from a session to its artifact: what is measured, in which order, and what is stored when.

Source: D. Gebre, iShrink, MSc thesis, MBZUAI 2025: quality against sparsity before anything is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..architectures.binding import Binding
from ..architectures.description import GROUPS, LAYERS, NEURONS
from ..checkpoint.fingerprint import model_fingerprint
from ..checkpoint.offload_choice import SAMPLES_ITSELF
from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..core.json_files import write_json
from ..core.limits import check_lengths
from ..core.locks import claimed_folder
from ..core.output import check_not_inside, check_output, staged_folder
from ..core.progress import note, progress_bar
from ..evaluation.environment import environment
from ..evaluation.harness import evaluate_tasks, open_tasks
from ..importance.stage import check_calibration, reads_text, score
from ..modeling.layerwise import check_apart
from ..planning.shape import resolve_shape
from ..report.analysis import Analysis, SparsityLevel
from ..report.files import ANALYSIS_FILE
from ..report.measurement import Measurement
from ..text.calibration import Calibration, held_out_windows
from ..text.sources import TextSource, label_sources, parse_sources
from .advice import Advice, advise
from .advised_command import advised_command
from .divergence import Advance, Reference, measure_masked
from .masking import mask_removal, together
from .options import AnalysisOptions
from .plots import draw_sensitivity, draw_sparsity
from .saved_state import State
from .sensitivity import measure_layers
from .zeroing import (
    KINDS,
    Removal,
    check_levels,
    choose_removal,
    kinds_of,
    removed_parameters,
)

_WINDOWS = "windows"
_SCORED = (LAYERS, GROUPS, NEURONS)


@dataclass(frozen=True)
class _Run:
    """What the functions of one analysis share."""

    session: Session
    config: IShrinkConfig
    options: AnalysisOptions
    calibration: Calibration

    @property
    def binding(self) -> Binding:
        return self.session.source.binding

    @property
    def texts(self) -> tuple[TextSource, ...]:
        """The texts to measure on."""
        return parse_sources(self.options.analysis_text or self.config.calibration)

    @property
    def protection(self) -> tuple[int, int]:
        return self.config.protection(self.binding.sizes["layers"], self.binding.first_layers)


def analyze(
    session: Session,
    config: IShrinkConfig,
    options: AnalysisOptions,
    output: Path | None = None,
    *,
    overwrite: bool = False,
) -> Analysis:
    """Measure quality against sparsity, and the sensitivity of every layer.

    Every finished measurement is stored in `OUTPUT.partial` at once; the same request resumes from there.

    Args:
        session: The run.
        config: Its criteria, calibration, tasks, protected layers and seed are read.
        options: What is measured.
        output: The output folder; it appears whole or not at all. None writes nothing.
        overwrite: Replace what is in the output folder.

    Returns:
        The analysis.

    Raises:
        RequestError: The request cannot be met.
        KeyboardInterrupt: It was interrupted; the message says what is stored.
    """
    run = _Run(session, config, options, Calibration(config, session))
    source = session.source
    for text in run.texts:
        text.check()
    check_calibration(run.calibration, source)
    check_apart(source.binding, "analyze", "shrink it by a criterion that runs the whole model, and compensation none")
    partial_folder = None
    if output is not None:
        check_output(output, overwrite)
        partial_folder = output.resolve().with_name(output.resolve().name + ".partial")
        check_output(partial_folder, overwrite=True)
        files = [text.path for text in (*run.texts, *run.calibration.sources) if text.path]
        for folder in (output, partial_folder):
            check_not_inside(folder, [source.folder, Path(source.name), *files])
    if any(text.is_self for text in run.texts):
        session.needs_whole = SAMPLES_ITSELF
    elif source.binding.mlps > 1:
        session.needs_whole = "analyze sets neurons of experts to zero in memory; shrink and evaluate can"
    check_levels(source.binding, options.shares, run.protection)
    lengths = {"analysis_length": options.analysis_length}
    if reads_text(config, _SCORED):
        lengths["calibration_length"] = config.calibration_length
    check_lengths(source.config, source.display_name, **lengths)
    if config.tasks:
        open_tasks(config.tasks, config.include_path, config.num_fewshot)
    with nullcontext() if partial_folder is None else claimed_folder(partial_folder, "measures"):
        return _measure_and_write(run, partial_folder, output, overwrite)


def _measure_and_write(run: _Run, partial_folder: Path | None, output: Path | None, overwrite: bool) -> Analysis:
    """Measure what is not stored yet, and write the analysis."""
    state = State(partial_folder, _identity(run))
    try:
        analysis = _measure(run, state)
        if output is not None:
            with staged_folder(output, overwrite=overwrite) as folder:
                write_analysis(analysis, folder)
    except KeyboardInterrupt:
        if not state.is_stored:
            raise
        raise KeyboardInterrupt(
            f"{state.count} measurements are stored in {state.folder}; run the same command again to resume"
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


def _settings(run: _Run) -> dict[str, Any]:
    """Return how the analysis was made; files have no folders in it."""
    config, options = run.config, run.options
    calibration, texts = run.calibration.sources, run.texts
    begin = run.calibration.begins_with
    begins_with = {"begins_with": begin} if begin else {}
    return {
        "levels": list(options.shares),
        "importance": config.importance,
        "layer_importance": config.layer_importance,
        "seed": config.seed,
        "batch_size": config.batch_windows,
        "protected_layers": list(run.protection),
        "calibration": {
            "sources": [text.label for text in calibration],
            "fingerprints": [text.fingerprint() for text in calibration],
            "samples": config.calibration_samples,
            "length": config.calibration_length,
            **begins_with,
        },
        "text": {
            "sources": label_sources(texts),
            "fingerprints": [text.fingerprint() for text in texts],
            "samples": options.analysis_samples,
            "length": options.analysis_length,
            **begins_with,
        },
        "tasks": list(config.tasks),
        "num_fewshot": config.num_fewshot,
    }


def _identity(run: _Run) -> dict[str, Any]:
    """Return everything that the measurements depend on."""
    session = run.session
    place = environment(session.device, session.dtype)
    return {
        "model": model_fingerprint(session.source),
        "settings": _settings(run),
        "include_path": run.config.include_path,
        "versions": dict(place.versions),
        "device": place.accelerator or place.device,
        "dtype": place.dtype,
    }


def _label(run: _Run) -> str:
    """Name the text that is measured on."""
    return ("" if run.options.analysis_text else "further windows of ") + ", ".join(label_sources(run.texts))


def _inputs(run: _Run) -> dict[str, torch.Tensor]:
    """Return the scores by config key, and the windows to measure on."""
    config, session = run.config, run.session
    windows = held_out_windows(
        run.texts,
        session.model,
        session.tokenizer,
        samples=run.options.analysis_samples,
        length=run.options.analysis_length,
        seed=config.seed,
        calibrated=run.calibration.sources,
        calibration_samples=config.calibration_samples,
        calibration_length=config.calibration_length,
    )
    session.check_tokens(windows, _label(run))
    return {**score(session, config, run.calibration, _SCORED), _WINDOWS: windows}


def _measure(run: _Run, state: State) -> Analysis:
    session, options, binding = run.session, run.options, run.binding
    total_layers = binding.sizes["layers"]
    planned = [(kind, share) for kind in KINDS for share in options.shares]
    total = len(planned) + total_layers
    if state.inputs:
        note(f"resuming in {state.folder}: {state.count} of {total} measurements are stored")
    if not state.inputs:
        state.store_inputs(_inputs(run))
    scores = {key: values for key, values in state.inputs.items() if key != _WINDOWS}
    label = _label(run)
    removals = {
        (kind, share): choose_removal(binding, scores, kinds_of(binding)[kind], share, run.protection)
        for kind, share in planned
    }
    # Several levels may come to the same units, and level 0 is the same for every kind: each is measured once.
    known = {removals[key]: level.quality for key, level in state.levels.items()}
    missing = {removal for key, removal in removals.items() if key not in state.levels and removal not in known}
    layers = [layer for layer in range(total_layers) if layer not in state.layers]
    if missing or layers or state.count < total:
        reference = Reference(session.model, state.inputs[_WINDOWS])
        steps = (len(missing) + 3 * len(layers)) * options.analysis_samples
        with progress_bar("zero-out", steps) as advance:
            for kind, share in planned:
                removal = removals[kind, share]
                if removal not in known:
                    known[removal] = _quality(run, reference, removal, label, advance)
                if (kind, share) not in state.levels:
                    state.add_level(_level(binding, kind, share, removal, known[removal]))
            for found in measure_layers(reference, binding, layers, label, advance=advance):
                state.add_layer(found)
    return _analysis(run, state, planned)


def _quality(
    run: _Run, reference: Reference, removal: Removal, label: str, advance: Advance
) -> tuple[Measurement, ...]:
    """Measure texts and tasks with a removal at zero."""
    session, config = run.session, run.config
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
            batch_size=config.batch_windows,
            seed=config.seed,
        )


def _level(
    binding: Binding, kind: str, share: float, removal: Removal, quality: tuple[Measurement, ...]
) -> SparsityLevel:
    removed = removed_parameters(binding, removal)
    return SparsityLevel(kind, share, removal.units, removed, removed / binding.num_parameters(), quality)


def _analysis(run: _Run, state: State, planned: list[tuple[str, float]]) -> Analysis:
    session, binding = run.session, run.binding
    source = session.source
    analysis = Analysis(
        model=session.base_name,
        revision=source.revision,
        model_type=binding.description.model_type,
        num_parameters=binding.num_parameters(),
        settings={**_settings(run), "model_fingerprint": state.request["model"]},
        levels=tuple(state.levels[key] for key in planned),
        sensitivity=tuple(state.layers[layer] for layer in range(binding.sizes["layers"])),
        notes=_notes(binding),
        max_divergence=run.options.max_divergence,
        advice="",
        changes={},
        finer_levels=(),
        command="",
        environment=environment(session.device, session.dtype),
    )
    advice = _advise(run, analysis)
    return replace(
        analysis,
        advice=advice.text,
        changes=advice.changes,
        finer_levels=advice.finer_levels,
        command=_command(run, advice),
    )


def _notes(binding: Binding) -> tuple[str, ...]:
    """Return what a reader must know: kinds that are measured but cannot be cut, and cuts that are not zero-outs."""
    notes = []
    for kind, keys in KINDS.items():
        dimension = binding.description.dimensions[keys[0]]
        if kind != "all" and dimension.fixed:
            notes.append(f"{kind} is measured, but cannot be cut and is not in 'all': {dimension.fixed}")
        elif kind != "all" and dimension.inexact:
            notes.append(f"a cut of {kind} gives different predictions from zero-out: {dimension.inexact}")
    return tuple(notes)


def _advise(run: _Run, analysis: Analysis) -> Advice:
    config, binding = run.config, run.binding

    def check(changes: Mapping[str, Any]) -> None:
        resolve_shape(binding, config.replace(**changes))

    return advise(
        analysis.kinds(),
        analysis.sensitivity,
        analysis.max_divergence,
        shape=binding.shape,
        protection=run.protection,
        can_cut=lambda kind: binding.description.dimensions[KINDS[kind][0]].fixed is None,
        check=check,
    )


def _command(run: _Run, advice: Advice) -> str:
    """Return the command line that the advice amounts to, as it can be published: files have no folders in it."""
    source = run.session.source
    extra = ["--gguf-file", source.gguf_file] if source.gguf_file else []
    extra += ["--revision", source.revision] if source.revision else []
    text = run.options.analysis_text
    names = None if text is None else [each.path.name if each.path else each.text for each in parse_sources(text)]
    options = run.options.replace(analysis_text=names)
    config = run.config.portable()
    return advised_command(config, options, advice.changes, advice.finer_levels, source.display_name, *extra)
