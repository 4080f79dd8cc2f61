"""A search from its request to its output folder.

1. The base's layout on the runtime says the bytes of every smaller file: of GGUF, or of safetensors.
2. Costs: probe files with random weights are timed in turn on the runtime, and prices fitted.
3. Damage: each kind of matrix and each block of layers in the coarsest type, the whole model in each type, and each
   dimension at a few sizes, made and repaired, on text that nothing is calibrated on.
4. Every shape gets its best types under the budget. The best few are made and measured; the expectation is corrected,
   and the next best is made, until the best expected recipe is the best measured one.
5. The best model's checkpoint and file, the record and the page are written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..architectures.composite import check_alone
from ..architectures.description import EXPERTS, LAYERS
from ..checkpoint.fingerprint import model_fingerprint
from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..core.durable import load_tensors, save_tensors
from ..core.limits import check_lengths
from ..core.locks import claimed_folder
from ..core.output import check_not_inside, check_output, staged_folder
from ..core.progress import note
from ..core.version import __version__
from ..edge.options import CALIBRATED_ROUNDING
from ..errors import RequestError, ShapeError
from ..evaluation.environment import environment
from ..planning.limits import Limit, parse_families
from ..planning.runtime_check import RuntimeCheck
from ..report.search import SearchRecord
from ..text.calibration import Calibration
from ..text.sources import TextSource, label_sources, parse_sources
from .advice import advise
from .allocation import Allocator, Budget
from .candidates import Candidates
from .choosing import Choices, describe_nearest
from .damage import DamageModel, shape_key
from .family import check_family, family_order
from .making import Maker
from .measured_damage import Measuring, fit_curves, level_sizes, measure_levels, measure_types
from .options import SearchOptions
from .profile import Profile, measure_profile
from .recipe import Recipe
from .recording import base_figures, level_record, limits_text, settled, unpruned_models, write_search
from .runtime import Runtime, open_runtime
from .shapes import dimension_sizes, shapes
from .store import MEASUREMENTS, PROFILE, Store, reuse_measurements, save_measurements
from .text_divergence import Reference, held_out_text


def work_folder(output: Path) -> Path:
    """Return where a search works: a folder beside its output, so that the same command finds it again.

    Args:
        output: The output folder.
    """
    resolved = output.resolve()
    return resolved.with_name(f"{resolved.name}.partial")


def search(
    session: Session, config: IShrinkConfig, options: SearchOptions, output: Path, *, overwrite: bool = False
) -> SearchRecord:
    """Search for the best model under a budget, or under several, and write it.

    Every finished measurement is stored in `OUTPUT.partial` at once; the same request resumes from there. Afterwards
    they are in `OUTPUT/measurements`, and another budget uses them.

    Args:
        session: The run over the base.
        config: How to calibrate, choose and repair. Its shape is not read; `prune` names the dimensions that may
            change.
        options: The budget, the runtime and the types to choose from.
        output: The output folder; it appears whole or not at all.
        overwrite: Replace what is in it.

    Returns:
        The record.

    Raises:
        RequestError: The request cannot be met; the message says what comes nearest.
        KeyboardInterrupt: It was interrupted; the message says what is stored.
    """
    folder = work_folder(output)
    runtime = open_runtime(session, options, folder)
    _check(session, config, options, output, runtime, overwrite=overwrite)
    given = _given_profile(session, options, runtime)
    with claimed_folder(folder, "searches"):
        try:
            earlier = output if options.reuse is None else Path(options.reuse).expanduser()
            request = _request(session, config, options, runtime)
            reuse_measurements(earlier, folder, request, asked=options.reuse is not None)
            record, candidates = Search(session, config, options, runtime, folder, given).run()
            with staged_folder(output, overwrite=overwrite) as staged:
                record = write_search(record, candidates, staged)
                save_measurements(folder, staged / MEASUREMENTS)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"what was measured is stored in {folder}; run the same command again to resume"
            ) from None
        shutil.rmtree(folder, ignore_errors=True)
    return record


def _check(
    session: Session,
    config: IShrinkConfig,
    options: SearchOptions,
    output: Path,
    runtime: Runtime,
    *,
    overwrite: bool,
) -> None:
    """Check all that can be known before long work."""
    source = session.source
    check_alone(
        source.raw_config,
        source.display_name,
        "a search",
        "shrink it to a target instead, such as target='params=-15%'",
    )
    check_output(output, overwrite)
    texts = [text.path for text in (*search_texts(config, options), *parse_sources(config.calibration)) if text.path]
    check_not_inside(output, [source.folder, Path(source.name), *texts])
    runtime.check()
    check_family(parse_families(options.target), merges=config.merge_key_value_heads)
    if config.shape:
        raise RequestError(
            f"a search chooses the shape itself; leave out {', '.join(config.shape)}, or name what may change with "
            "prune"
        )
    if EXPERTS in (config.prune or ()) or config.merge_experts:
        raise RequestError(
            "a search does not drop experts yet; drop them with `ishrink shrink --num-experts N` first, and search "
            "what that made"
        )
    for text in (*search_texts(config, options), *parse_sources(config.calibration)):
        text.check()
    check_lengths(
        source.config,
        source.display_name,
        calibration_length=config.calibration_length,
        search_length=options.search_length,
        prompt_length=options.prompt_length,
    )


def _given_profile(session: Session, options: SearchOptions, runtime: Runtime) -> Profile | None:
    """Return the profile that the user gives, once it is checked; None where this machine is measured.

    Raises:
        SourceError: It is no profile.
        RequestError: It is not of what is asked.
    """
    if options.profile is None:
        return None
    found = Profile.read(Path(options.profile).expanduser())
    found.check(session.source.binding, runtime, threads=options.threads, workload=options.workload)
    return found


def search_texts(config: IShrinkConfig, options: SearchOptions) -> tuple[TextSource, ...]:
    """Return the texts to choose on.

    Args:
        config: The calibration.
        options: Which texts; those of the calibration by default.
    """
    return parse_sources(options.search_text or config.calibration)


class Search:
    """One search.

    Args:
        session: The run over the base.
        config: How to calibrate, choose and repair.
        options: The budget, and how much is measured.
        runtime: The base on the runtime.
        folder: Where it works.
        given: The profile of another device; None where this machine is measured.
    """

    def __init__(
        self,
        session: Session,
        config: IShrinkConfig,
        options: SearchOptions,
        runtime: Runtime,
        folder: Path,
        given: Profile | None,
    ) -> None:
        self.session = session
        self.config = config
        self.options = options
        self.runtime = runtime
        self.folder = folder
        self._given = given
        self.workload = options.workload
        limit = options.max_time
        self.deadline = None if limit is None else time.monotonic() + limit * 60
        self.store = Store(folder, _request(session, config, options, runtime))
        if self.store.resumed:
            note(f"resuming: {self.store.resumed} measurements are in {folder}")

    @cached_property
    def maker(self) -> Maker:
        """What makes checkpoints."""
        calibration = Calibration(self.config, self.session)
        calibration.windows = self._stored_windows("calibration", lambda: calibration.windows)
        return Maker(self.session, self.config, calibration, self.folder / "made", self.runtime.shaped_for)

    @cached_property
    def reference(self) -> Reference:
        """The text to choose on."""
        config, options = self.config, self.options
        windows = self._stored_windows(
            "chosen-on",
            lambda: held_out_text(
                self.session,
                config,
                search_texts(config, options),
                samples=options.search_samples,
                length=options.search_length,
            ),
        )
        return Reference(self.session.model, windows, self.session.source.display_name)

    def _stored_windows(self, name: str, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return windows of text that were drawn before, or draw and store them: to sample them takes a minute."""
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            save_tensors(path, {"windows": draw()})
        return load_tensors(path)["windows"]

    @cached_property
    def profile(self) -> Profile:
        """What shapes and types cost on the device."""
        if self._given is not None:
            return self._given
        path = self.folder / PROFILE
        if not path.is_file():
            found = measure_profile(self.runtime, self.maker, model=self.session.base_name, workload=self.workload)
            found.write(path)
        return Profile.read(path)

    @cached_property
    def sizes(self) -> dict[str, list[int]]:
        """The sizes of each dimension that are considered."""
        binding, prune = self.session.source.binding, self.config.prune
        layers = binding.shape[LAYERS]
        protected = min(sum(self.config.protection(layers, binding.first_layers)), layers)
        found = {
            key: dimension_sizes(binding, key, rows=self.maker.rows, protected=protected, types=self.runtime.types)
            for key in binding.shape
        }
        return {key: sizes if prune is None or key in prune else sizes[:1] for key, sizes in found.items()}

    def run(self) -> tuple[SearchRecord, Candidates]:
        """Measure, choose and make; return the record, and the models that were made."""
        base, options, layout = dict(self.session.source.binding.shape), self.options, self.runtime.layout
        choosable, costs = self.runtime.types, self.profile.costs
        families = parse_families(options.target)
        reference = base_figures(layout, choosable[0], choosable, costs, self.workload)
        _check_known(families, reference)
        budgets = {limits_text(limits): Budget(limits, reference) for limits in families}
        rounding = self.runtime.rounding(self.maker) if options.rounding == CALIBRATED_ROUNDING else None
        measuring = Measuring(layout, self.maker, self.reference, self.store, rounding)
        types, whole = measure_types(measuring, choosable)
        binding = self.session.source.binding
        protected = self.config.protection(binding.shape[LAYERS], binding.first_layers)
        rules = RuntimeCheck(binding, self.runtime.shaped_for, protected)
        wanted = level_sizes(base, self.sizes, self.maker.rows)
        levels = measure_levels(measuring, [each for each in wanted if rules.refusal({**base, **each}) is None])
        damage = DamageModel(
            base=base,
            curves=fit_curves(base, levels, self.maker.rows),
            types=types,
            rows=self.maker.rows,
            known={shape_key(base): 0.0, **{shape_key(shape): value for shape, value in levels}},
        )
        allocator = Allocator(layout, damage, costs, self.workload, choosable)
        choices = Choices(allocator, shapes(self.sizes, binding, rules), self.maker)
        candidates = Candidates(measuring, self.runtime, options, self.deadline)
        unpruned = unpruned_models(allocator, whole, choosable)
        family = family_order(budgets)
        nearest: dict[str, str] = {}
        larger: Recipe | None = None
        for target in family or budgets:
            budget = budgets[target]
            if not candidates.answer(budget, choices, larger):
                nearest[target] = describe_nearest(budget, choices.nearest(budget, larger), base)
            elif family is not None:
                larger = candidates.best(unpruned, budget, larger)
        if len(nearest) == len(budgets):
            raise ShapeError("; ".join(nearest[target] for target in budgets))
        models = candidates.timed([*unpruned, *candidates.made.values()], budgets, reference)
        record = SearchRecord(
            model=self.session.base_name,
            base=base,
            runtime=self.runtime.name,
            build=self.profile.build,
            threads=self.profile.threads,
            prompt=self.workload.prompt,
            context=self.workload.context,
            texts=tuple(label_sources(search_texts(self.config, options))),
            windows=options.search_samples,
            length=options.search_length,
            quantizations=choosable,
            reference=reference,
            models=tuple(models),
            expected_front=tuple(choices.front()),
            unpruned_front=tuple(Choices(allocator, [base], self.maker).front()),
            answers=settled(budgets, models, nearest, family, candidates),
            errors=costs.errors,
            levels=tuple(level_record(allocator, self.maker, shape, value) for shape, value in levels),
            rounding=options.rounding if whole else None,
        )
        return replace(record, advice=tuple(advise(record))), candidates


def _check_known(families: Sequence[Sequence[Limit]], reference: Mapping[str, float]) -> None:
    """Check that every limited metric was measured.

    Raises:
        RequestError: One was not.
    """
    for limit in (limit for limits in families for limit in limits):
        if limit.metric not in reference:
            raise RequestError(
                f"this system does not report the {limit.metric} of a process, so {limit.text} cannot be met; limit "
                f"{', '.join(reference)}, or pass the --profile of a device that reports it"
            )


def _request(session: Session, config: IShrinkConfig, options: SearchOptions, runtime: Runtime) -> dict[str, Any]:
    """Return all that measurements depend on. The budget is not among it: another one needs no new measurement."""
    free = ("target", "max_time", "candidates", "profile", "reuse")
    texts = {*parse_sources(config.calibration), *search_texts(config, options)}
    texts |= set(parse_sources(config.vocab_text) if config.vocab_text else ())
    here = environment(session.device, session.dtype)
    machine: dict[str, Any] = {"device": here.device, "dtype": here.dtype}
    if options.profile is None:  # else another device's costs are given
        machine |= {"accelerator": here.accelerator, "cpu": here.cpu, "threads": runtime.threads}
    return {
        "version": __version__,
        "model": model_fingerprint(session.source),
        "config": config.to_dict(),
        "options": {key: value for key, value in options.to_dict().items() if key not in free},
        "texts": {str(text.path): text.fingerprint() for text in texts if text.path is not None},
        "machine": machine,
        "libraries": {name: _installed(name) for name in ("torch", "transformers", "gguf", "xllamacpp")},
    }


def _installed(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
