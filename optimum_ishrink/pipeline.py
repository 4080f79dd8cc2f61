"""The order of the stages: the only file that knows it.

source -> importance -> plan -> checkpoint -> report -> card
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .artifacts import CONFIG_FILE, PLAN_FILE, REPORT_FILE, SCORES_FILE, ModelReport, Plan, Report, write_json
from .card import build_card, write_scores
from .compute import resolve_device, resolve_dtype
from .configuration import IShrinkConfig
from .data import PYDOC, TextSource, calibration_windows, label_sources, parse_sources, token_windows, window_kinds
from .errors import DataError
from .evaluation import (
    LatencySettings,
    environment,
    evaluate_tasks,
    measure_latency,
    open_tasks,
    text_measurements,
)
from .importance import (
    LAYER_CRITERIA,
    UNIT_CRITERIA,
    Batches,
    Criterion,
    key_value_similarity,
    score_model,
    score_spans,
    score_weights,
    units_to_score,
)
from .output_folder import check_not_inside, check_output, staged_folder
from .planning import (
    choose_greedily,
    choose_span,
    edit_config,
    make_plan,
    removable_spans,
    resolve_shape,
    summed_costs,
)
from .progress import progress_bar
from .source import Source, load_model
from .surgery import compensate, needs_cut_model, write_checkpoint
from .tensor_files import DTYPES, TensorInfo, overwrite_tensor, read_index

LAYERS = "num_hidden_layers"
SUMMED_UNITS = ("num_key_value_heads", "intermediate_size")
"""The units that a layer's score is the sum of; query heads are part of their KV group."""


class Session:
    """One run over one source: the loaded model and tokenizer are shared between the stages that need them.

    Args:
        source: The model.
        config: What was asked for.
        model: The source's model, when an earlier run has loaded it already with the same dtype and device.

    Raises:
        RequestError: The device or dtype cannot be had.
    """

    def __init__(self, source: Source, config: IShrinkConfig, model: Any = None) -> None:
        self.source = source
        self.config = config
        self.device = resolve_device(config.device)
        self.dtype = resolve_dtype(config.dtype, self.device)
        self._model = model
        self._tokenizer: Any = None

    @property
    def base_name(self) -> str:
        """What cards and reports call the source."""
        return self.config.base_model or display_name(self.source)

    @property
    def model(self) -> Any:
        """The base model, loaded when it is first needed."""
        if self._model is None:
            self._model = self.source.load_model(self.dtype, self.device)
        return self._model

    @cached_property
    def calibration_windows(self) -> torch.Tensor:
        """The windows to calibrate on, drawn when they are first needed."""
        config = self.config
        return calibration_windows(
            parse_sources(config.calibration),
            self.model,
            self.tokenizer,
            samples=config.calibration_samples,
            length=config.calibration_length,
            seed=config.seed,
        )

    @property
    def importance_windows(self) -> torch.Tensor:
        """Those of them that scores are taken on: the first, of a random order."""
        return self.calibration_windows[: self.config.importance_samples]

    @cached_property
    def evaluation_windows(self) -> dict[str, torch.Tensor]:
        """The windows of each text to measure on, by its label."""
        config = self.config
        sources = evaluation_sources(config)
        return {
            label: token_windows(
                source.documents(),
                self.tokenizer,
                config.eval_length,
                config.eval_samples,
                seed=config.seed,
                label=label,
            )
            for source, label in zip(sources, label_sources(sources), strict=True)
        }

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, loaded when it is first needed."""
        if self._tokenizer is None:
            self._tokenizer = self.source.load_tokenizer()
        return self._tokenizer


@dataclass(frozen=True)
class PlannedCut:
    """A plan with the scores that it was made from.

    Args:
        plan: The plan.
        scores: Config key to scores.
    """

    plan: Plan
    scores: dict[str, torch.Tensor]


def check_request(config: IShrinkConfig, *, measure: bool = True) -> None:
    """Check what can be checked before any long work: the texts exist, and none is both calibrated and measured on.

    Raises:
        DataError: A text is missing, or would be both.
    """
    calibration = parse_sources(config.calibration)
    evaluation = evaluation_sources(config) if measure and config.evaluate else ()
    for source in (*calibration, *evaluation):
        if source.path is not None:
            next(iter(source.documents()))
    if any(source.is_self for source in evaluation):
        raise DataError("eval_text cannot be 'self': what the model says itself is no independent text")
    resolved = {source.path.resolve() if source.path else source.text for source in calibration}
    for source in evaluation:
        if (source.path.resolve() if source.path else source.text) in resolved:
            raise DataError(
                f"{source.text} is given for calibration and for evaluation; measure on text it has not seen"
            )
    if measure and config.tasks:
        open_tasks(config.tasks, config.include_path)


def evaluation_sources(config: IShrinkConfig) -> tuple[TextSource, ...]:
    """Return the texts to measure on."""
    return parse_sources(config.eval_text) if config.eval_text else (TextSource(PYDOC),)


def all_texts(config: IShrinkConfig) -> tuple[TextSource, ...]:
    """Return every text that a run reads."""
    return (*parse_sources(config.calibration), *evaluation_sources(config))


def score(session: Session, keys: Sequence[str]) -> dict[str, torch.Tensor]:
    """Score the dimensions that change.

    A criterion that needs only weights reads them tensor by tensor: then the model is never loaded.

    Args:
        session: The run.
        keys: Config keys of those dimensions.
    """
    config, source = session.config, session.source
    unit, layer = UNIT_CRITERIA[config.importance], LAYER_CRITERIA[config.layer_importance]
    of_layers = tuple(key for key in keys if key == LAYERS)
    of_units = tuple(key for key in keys if key != LAYERS)
    if of_layers and layer.needs == "unit_scores":
        of_units = (*of_units, *(key for key in SUMMED_UNITS if key not in of_units))
    units_to_score(source.binding, unit, of_units, config.importance_group_size)  # refused before the model is loaded
    scores: dict[str, torch.Tensor] = {}
    from_model: dict[Criterion, tuple[str, ...]] = {}
    for criterion, wanted in ((unit, of_units), (layer, of_layers)):
        if wanted and criterion.needs == "weights":
            size = config.importance_group_size
            scores.update(score_weights(source.tensors, source.binding, criterion, wanted, group_size=size))
        elif wanted and criterion.needs != "unit_scores":
            from_model[criterion] = wanted
    if from_model:
        scores.update(
            score_model(
                session.model,
                source.binding,
                session.importance_windows,
                unit if unit in from_model else None,
                layer if layer in from_model else None,
                tuple(key for wanted in from_model.values() for key in wanted),
                batch_size=config.batch_size,
                group_size=config.importance_group_size,
                seed=config.seed,
            )
        )
    if of_layers and layer.needs == "unit_scores":
        scores[LAYERS] = layer.function(*(scores[key] for key in SUMMED_UNITS))
    return {key: scores[key] for key in keys}


def select_layers(
    session: Session, shape: Mapping[str, int], scores: Mapping[str, torch.Tensor]
) -> tuple[int, ...] | None:
    """Return the layers that stay where that takes more than one score for each; None where the highest scored stay.

    Args:
        session: The run.
        shape: The complete new shape.
        scores: What `score` returned.
    """
    config, binding = session.config, session.source.binding
    total, count = binding.shape[LAYERS], shape[LAYERS]
    if count == total or config.layer_selection == "one-shot":
        return None
    criterion = LAYER_CRITERIA[config.layer_importance]
    protection = config.request.protection(total)

    def measure(spans: Sequence[tuple[int, int]], without: tuple[int, ...] = ()) -> torch.Tensor:
        batches = Batches(session.importance_windows, None, config.batch_size, session.model.device)
        return score_spans(session.model, binding, batches, criterion, spans, without)

    if config.layer_selection == "greedy":

        def score_again(left: Sequence[int], gone: tuple[int, ...]) -> torch.Tensor:
            return measure([(layer, layer + 1) for layer in left], gone)

        return choose_greedily(scores[LAYERS], score_again, count, *protection)
    spans = removable_spans(total, count, *protection)
    costs = measure(spans) if criterion.measures_removal else summed_costs(scores[LAYERS], spans)
    return choose_span(costs, spans, total)


def plan_cut(session: Session, *, command: str = "", measure: bool = True) -> PlannedCut:
    """Choose what stays.

    Args:
        session: The run.
        command: The command line that makes the same model; the card shows it.
        measure: Whether the run goes on to measure, so that its texts and tasks are checked as well.

    Raises:
        RequestError: The request cannot be met.
    """
    config, source = session.config, session.source
    check_request(config, measure=measure)
    shape = resolve_shape(source.binding, config.request)
    # The config class may know more than the rules: it is asked before the long work, with layers that do not matter.
    edit_config(source.raw_config, source.config, source.binding, shape, range(shape[LAYERS]))
    if measure and config.evaluate:
        session.evaluation_windows  # noqa: B018 - text that is too short is found now, not after the cut
    session.source.tensors  # noqa: B018 - corrupt files are found before the long work, not after
    scores = score(session, scored_dimensions(source.binding.shape, shape, merge=config.merge_key_value_heads))
    if config.merge_key_value_heads:
        scores["key_value_similarity"] = key_value_similarity(source.tensors, source.binding)
    used = used_criteria(config, scores)
    reads_text = config.compensation != "none" or any(criterion.reads_text for criterion in used.values())
    settings = {
        "importance": used["unit"].name if "unit" in used else None,
        "layer_importance": used["layer"].name if "layer" in used else None,
        "layer_selection": config.layer_selection if "layer" in used else None,
        "seed": config.seed,
        "compensation": {"method": config.compensation},
        "calibration": {
            "sources": [text.label for text in parse_sources(config.calibration)],
            "fingerprints": [text.fingerprint() for text in parse_sources(config.calibration)],
            "samples": config.calibration_samples,
            "length": config.calibration_length,
            "importance_samples": min(config.importance_samples, config.calibration_samples),
            "batch_size": config.batch_size,
        }
        if reads_text
        else None,
        "origin": {
            "base_model": config.base_model or (source.name if source.is_hub_id else None),
            "license": source.license,
            "license_details": dict(source.license_details),
            "notes": list(source.notes),
            "command": command,
        },
    }
    plan = make_plan(
        model=session.base_name,
        revision=source.revision,
        raw_config=source.raw_config,
        config=source.config,
        binding=source.binding,
        shape=shape,
        request=config.request,
        scores=scores,
        settings=settings,
        layers=select_layers(session, shape, scores),
    )
    return PlannedCut(plan, scores)


def used_criteria(config: IShrinkConfig, scored: Iterable[str]) -> dict[str, Criterion]:
    """Return the criteria that chose something: `unit`, `layer`, both or none.

    Args:
        config: The run's config.
        scored: Config keys of the dimensions that were scored.
    """
    keys = set(scored)
    used = {}
    if LAYERS in keys:
        used["layer"] = LAYER_CRITERIA[config.layer_importance]
    summed = "layer" in used and used["layer"].needs == "unit_scores"
    if summed or keys & {"num_key_value_heads", "num_attention_heads", "intermediate_size"}:
        used["unit"] = UNIT_CRITERIA[config.importance]
    return used


def repair(session: Session, plan: Plan, folder: Path) -> Plan:
    """Repair a written checkpoint in closed form, and return the plan with what became of each projection.

    Args:
        session: The run; its source is the base.
        plan: The plan that the checkpoint was cut by.
        folder: The checkpoint.
    """
    binding = session.source.binding
    tensors = read_index(folder)

    def write(name: str, weight: torch.Tensor) -> None:
        overwrite_tensor(tensors[name], weight.to(DTYPES[tensors[name].dtype]).cpu())

    windows = session.calibration_windows
    repairs = compensate(
        session.model,
        binding,
        plan,
        windows,
        write,
        kinds=window_kinds(parse_sources(session.config.calibration), len(windows), seed=session.config.seed),
        cut_model=load_model(folder, session.dtype, session.device) if needs_cut_model(binding, plan) else None,
        batch_size=session.config.batch_size,
    )
    found = {"method": "ridge", "repairs": [asdict(repair) for repair in repairs]}
    return replace(plan, settings={**plan.settings, "compensation": found})


def scored_dimensions(before: Mapping[str, int], after: Mapping[str, int], *, merge: bool) -> list[str]:
    """Return the config keys of the dimensions in which something has to be chosen.

    Args:
        before: The model's shape.
        after: The new shape.
        merge: Whether KV heads are merged: then none of them is chosen to go.
    """
    kv, heads = "num_key_value_heads", "num_attention_heads"
    changed = [key for key in before if key not in (kv, heads) and after[key] < before[key]]
    if after[kv] < before[kv] and not merge:
        changed.append(kv)
    available = before[heads] if merge else after[kv] * (before[heads] // before[kv])
    if after[heads] < available:
        changed.append(heads)
    return changed


def display_name(source: Source) -> str:
    """Return the model's name for cards and reports: a Hub id or a folder's own name, never a whole path."""
    return source.name if source.is_hub_id else Path(source.name).resolve().name


def command_line(session: Session, output: Path, *extra: str) -> str:
    """Return the command line that makes the same model; files go by their own names.

    Args:
        session: The run.
        output: The output folder.
        extra: More arguments.
    """
    source = session.source
    words = [*(["--gguf-file", source.gguf_file] if source.gguf_file else []), *extra]
    if source.revision:
        words += ["--revision", source.revision]
    return session.config.portable().command(display_name(source), output.resolve().name, *words)


def shrink(
    session: Session,
    output: Path,
    *,
    overwrite: bool = False,
    command: str | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> Report:
    """Run all stages; the output folder appears whole or not at all.

    Args:
        session: The run.
        output: The output folder.
        overwrite: Replace what is there.
        command: The command line that the card shows; by default the one that asks for the same.
        on_plan: Called with the plan before the cut.

    Returns:
        The report.

    Raises:
        RequestError: The request cannot be met; nothing was written.
        VerificationError: The written checkpoint was not what was planned; nothing was kept.
    """
    config, source = session.config, session.source
    check_output(output, overwrite)
    inputs = [source.folder, Path(source.name), *(text.path for text in all_texts(config) if text.path)]
    check_not_inside(output, inputs)
    command = command or command_line(session, output)
    planned = plan_cut(session, command=command)
    on_plan(planned.plan)
    with staged_folder(output, overwrite=overwrite) as folder:
        plan = planned.plan
        cut(session, plan, folder)
        if plan.settings["compensation"]["method"] == "ridge":
            plan = repair(session, plan, folder)
        write_scores(planned.scores, folder / SCORES_FILE)
        write_json(folder / PLAN_FILE, plan.to_json())
        write_json(folder / CONFIG_FILE, config.portable().to_dict())
        report = measure(session, folder, name=output.resolve().name)
        write_json(folder / REPORT_FILE, report.to_json())
        build_card(folder)
    return report


def cut(session: Session, plan: Plan, folder: Path) -> None:
    """Write and verify the checkpoint."""
    source = session.source
    edited = edit_config(source.raw_config, source.config, source.binding, plan.new_shape, plan.layers)
    with progress_bar(
        "writing the checkpoint (MB)", source.nbytes * plan.new_num_parameters // plan.num_parameters // 10**6
    ) as advance:
        pending = 0

        def wrote(count: int) -> None:
            nonlocal pending
            pending += count
            advance(pending // 10**6)
            pending %= 10**6

        write_checkpoint(source.folder, source.tensors, source.binding, plan, edited, folder, progress=wrote)


def measure(session: Session, folder: Path, *, name: str) -> Report:
    """Measure base and result: parameters and bytes from the files, quality and speed as the config asks.

    Args:
        session: The run; its source is the base.
        folder: The shrunk checkpoint.
        name: What the report calls it.
    """
    config = session.config
    base = count(session.source.tensors, session.base_name)
    shrunk = count(read_index(folder), name)
    if config.evaluate or config.benchmark:
        model = load_model(folder, session.dtype, session.device)
        if config.evaluate:
            base, shrunk = add_quality(session, base, shrunk, model, session.model)
        if config.benchmark:
            base, shrunk = add_speed(config, base, shrunk, model, session.model)
    return Report(base, shrunk, environment(session.device, session.dtype))


def count(tensors: Mapping[str, TensorInfo], name: str) -> ModelReport:
    """Return parameters and bytes of a checkpoint, read from its files' headers."""
    parameters = sum(torch.Size(info.shape).numel() for info in tensors.values())
    return ModelReport(name, parameters, sum(info.nbytes for info in tensors.values()))


def add_quality(
    session: Session, base: ModelReport, shrunk: ModelReport, model: Any, base_model: Any
) -> tuple[ModelReport, ModelReport]:
    """Measure texts and tasks, and return both reports with the figures added."""
    config = session.config
    for source, (label, windows) in zip(evaluation_sources(config), session.evaluation_windows.items(), strict=True):
        settings = {"length": config.eval_length, "seed": config.seed, "fingerprint": source.fingerprint()}
        old, new = text_measurements(model, base_model, windows, label, settings)
        base, shrunk = replace(base, quality=base.quality + old), replace(shrunk, quality=shrunk.quality + new)
    if config.tasks:
        manager = open_tasks(config.tasks, config.include_path)
        found = [
            evaluate_tasks(
                each,
                session.tokenizer,
                config.tasks,
                manager,
                num_fewshot=config.num_fewshot,
                batch_size=config.batch_size,
                seed=config.seed,
            )
            for each in (base_model, model)
            if each is not None
        ]
        shrunk = replace(shrunk, quality=shrunk.quality + found[-1])
        if base_model is not None:
            base = replace(base, quality=base.quality + found[0])
    return base, shrunk


def add_speed(
    config: IShrinkConfig, base: ModelReport, shrunk: ModelReport, model: Any, base_model: Any
) -> tuple[ModelReport, ModelReport]:
    """Time both models in turn, and return both reports with the figures added."""
    settings = LatencySettings(config.benchmark_prompt_length, config.benchmark_new_tokens, config.benchmark_rounds)
    models = {"shrunk": model} if base_model is None else {"base": base_model, "shrunk": model}
    found = measure_latency(models, settings)
    if base_model is not None:
        base = replace(base, speed=base.speed + found["base"])
    return base, replace(shrunk, speed=shrunk.speed + found["shrunk"])


def measure_alone(session: Session, base: Source | None, *, evaluate: bool, benchmark: bool) -> Report:
    """Measure any two models, or one: nothing is cut.

    Args:
        session: The run; its source is the model in question.
        base: What it is compared with, or None.
        evaluate: Measure texts and tasks.
        benchmark: Measure speed.

    Raises:
        DataError: A text cannot be used, or the two models do not share a vocabulary.
    """
    config = session.config
    for source in evaluation_sources(config) if evaluate else ():
        if source.is_self:
            raise DataError("eval_text cannot be 'self': what the model says itself is no independent text")
    if evaluate and base is not None and base.config.vocab_size != session.source.config.vocab_size:
        raise DataError(
            f"the models do not share a vocabulary ({base.config.vocab_size} and {session.source.config.vocab_size} "
            "tokens), so their predictions cannot be compared"
        )
    report = count(session.source.tensors, display_name(session.source))
    base_report = None if base is None else count(base.tensors, config.base_model or display_name(base))
    base_model = None if base is None else base.load_model(session.dtype, session.device)
    # The placeholder stands for a base that is not there; nothing is ever added to it.
    pair = (base_report or report, report)
    if evaluate:
        pair = add_quality(session, *pair, session.model, base_model)
    if benchmark:
        pair = add_speed(config, *pair, session.model, base_model)
    return Report(pair[0] if base is not None else None, pair[1], environment(session.device, session.dtype))
