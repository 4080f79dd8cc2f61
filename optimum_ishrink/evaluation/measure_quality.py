"""Quality of one model, or of a model and its base: texts, tasks and samples, each cached once measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..core.digest import tensor_digest
from ..core.limits import check_lengths, check_tokens, max_positions
from ..core.progress import note
from ..errors import DataError
from ..report.measurement import Comparison, Failure, Measurement, Sample
from ..text.windows import beginning, beginning_name
from .comparison import compare_text
from .evaluated_model import EvaluatedModel
from .harness import LoadedTasks, TaskResult, collect, harness_measurements, load_tasks, run_task
from .inputs import EvaluationInputs
from .options import QualityOptions
from .passages import Passage, TextWindows, retokenize
from .samples import PROMPTS, has_template, write_samples
from .task_comparison import compare_tasks
from .task_groups import TaskRequest, requested_tasks
from .text_quality import WindowFigures, figure_measurements, passage_figures, window_figures


@dataclass(frozen=True)
class Quality:
    """What was measured.

    Args:
        base: The base's figures; empty without a base.
        shrunk: The model's.
        comparisons: How much of each figure is retained.
        samples: What both models generate after fixed prompts.
        failures: Tasks that could not be measured.
    """

    base: tuple[Measurement, ...] = ()
    shrunk: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    samples: tuple[Sample, ...] = ()
    failures: tuple[Failure, ...] = ()

    def __add__(self, other: Quality) -> Quality:
        return Quality(
            self.base + other.base,
            self.shrunk + other.shrunk,
            self.comparisons + other.comparisons,
            self.samples + other.samples,
            self.failures + other.failures,
        )


def measure_quality(inputs: EvaluationInputs, evaluated: EvaluatedModel, base: EvaluatedModel | None) -> Quality:
    """Measure texts, tasks and samples as the options say.

    Args:
        inputs: The texts and tasks.
        evaluated: The model to measure.
        base: The model to compare with, or None.

    Raises:
        DataError: A text cannot be used.
    """
    options = inputs.options
    found = measure_texts(inputs, evaluated, base)
    for request in requested_tasks(options.tasks, options.num_fewshot):
        found += _measure_task(inputs, request, evaluated, base)
    return found + _write_samples(options, evaluated, base)


def measure_texts(inputs: EvaluationInputs, evaluated: EvaluatedModel, base: EvaluatedModel | None) -> Quality:
    """Measure the evaluation texts.

    Args:
        inputs: The texts; windows are in tokens of the run's source.
        evaluated: The model to measure.
        base: The model to compare with, or None.

    Raises:
        DataError: A window is longer than a model can read, has a token that it has no embedding for, or a text has
            no bytes to count where that is needed.
        NotFiniteError: A model gives NaN or infinite values.
    """
    options, found = inputs.options, Quality()
    reason = None if base is None else vocabulary_difference(evaluated, base)
    if base is not None and reason is None:
        check_lengths(base.source.config, base.name, eval_length=options.eval_length)
    if reason is not None:
        note(
            f"{reason}: perplexity, KL divergence and agreement count tokens and are left out; "
            "bits per byte is measured for both"
        )
    for source, (label, windows) in zip(inputs.sources, inputs.windows().items(), strict=True):
        settings = {"length": options.eval_length, "seed": options.seed, "fingerprint": source.fingerprint()}
        settings |= _begins_with(evaluated, base if reason is not None else None)
        if base is not None and reason is not None:
            found += _compare_passages(windows, label, settings, evaluated, base, seed=options.seed)
            continue
        key = {
            "kind": "text",
            "name": label,
            "windows": tensor_digest(windows.ids),
            "bytes": None if windows.passages is None else [passage.bytes for passage in windows.passages],
            "base": base.fingerprint if base is not None and options.result_cache else None,
        }

        def measure(windows: TextWindows = windows, label: str = label) -> Any:
            names = (evaluated.name, "" if base is None else base.name)
            each = window_figures(evaluated.model, None if base is None else base.model, windows, label, names)
            return [None if figures is None else asdict(figures) for figures in each]

        old, new = (None if each is None else WindowFigures.from_dict(each) for each in evaluated.cached(key, measure))
        assert new is not None
        found += Quality(
            figure_measurements(old, label, settings) if old else (),
            figure_measurements(new, label, settings),
            tuple(compare_text(old, new, label, per_token=True, seed=options.seed)) if old else (),
        )
    return found


def _begins_with(evaluated: EvaluatedModel, other: EvaluatedModel | None) -> dict[str, str]:
    """Return what windows begin with, for the report; nothing where they begin with text.

    Args:
        evaluated: The model to measure.
        other: The model to compare with where it reads other tokens. Both have the same settings, because they are
            measured on the same text.
    """
    names = [beginning_name(each.tokenizer) for each in (evaluated, other) if each is not None]
    if not any(names):
        return {}
    same = names[0] if len(set(names)) == 1 else None
    return {"begins_with": same or "what each tokenizer begins a text with"}


def vocabulary_difference(evaluated: EvaluatedModel, base: EvaluatedModel) -> str | None:
    """Return how two models' tokens differ, which makes figures per token incomparable; None when they do not differ.

    Args:
        evaluated: The model to measure.
        base: The model to compare with.
    """
    ours, theirs = evaluated.tokenizer.get_vocab(), base.tokenizer.get_vocab()
    if ours != theirs:
        odd = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        numbers = f"token {odd!r} has id {theirs.get(odd)} there and {ours.get(odd)} here"
        return f"the base has another tokenizer ({numbers})"
    sizes = (base.source.config.vocab_size, evaluated.source.config.vocab_size)
    if sizes[0] == sizes[1]:
        return None
    return f"the models do not share a vocabulary ({sizes[0]} and {sizes[1]} tokens)"


def _compare_passages(
    windows: TextWindows,
    label: str,
    settings: dict[str, Any],
    evaluated: EvaluatedModel,
    base: EvaluatedModel,
    *,
    seed: int,
) -> Quality:
    """Measure both models' bits per byte on a text, each in its own tokens."""
    passages = windows.passages
    if passages is None:
        raise DataError(
            f"the model's tokenizer does not map tokens to text, so {label} has no bytes to count; "
            "leave out --base, or measure tasks alone"
        )
    key = {"kind": "passages", "name": label, "passages": [asdict(passage) for passage in passages]}
    for each in (evaluated, base):
        _check_passages(each, passages, label)

    def figures(each: EvaluatedModel) -> WindowFigures:
        def measure() -> Any:
            return asdict(passage_figures(each.model, each.tokenizer, passages, label, each.name))

        begin = beginning(each.tokenizer)  # not in the passages, which are text
        return WindowFigures.from_dict(each.cached({**key, **({"begins_with": begin} if begin else {})}, measure))

    old, new = figures(base), figures(evaluated)
    return Quality(
        figure_measurements(old, label, settings, per_token=False),
        figure_measurements(new, label, settings, per_token=False),
        tuple(compare_text(old, new, label, per_token=False, seed=seed)),
    )


def _check_passages(evaluated: EvaluatedModel, passages: Sequence[Passage], label: str) -> None:
    """Check that a model can read a text in its own tokens, before it runs."""
    config, name = evaluated.source.config, evaluated.name
    limit, tokenizer = max_positions(config), evaluated.tokenizer
    for passage in passages:
        ids, _ = retokenize(passage, tokenizer)
        check_tokens(ids, config.vocab_size, tokenizer, label, name)
        if limit is not None and len(ids) > limit:
            raise DataError(
                f"a window of {label} has {len(ids)} tokens for {name}, which has {limit} positions; "
                "use shorter windows (--eval-length)"
            )


def _measure_task(
    inputs: EvaluationInputs, request: TaskRequest, evaluated: EvaluatedModel, base: EvaluatedModel | None
) -> Quality:
    """Measure one task, or all tasks of a group, on both models; a task that fails does not end the run."""
    options = inputs.options
    evaluated_models = [evaluated] if base is None else [base, evaluated]
    results: dict[str, dict[str, TaskResult]] = {each.role: {} for each in evaluated_models}
    failures: list[Failure] = []
    groups: Mapping[str, Any] = {}
    try:
        loaded = load_tasks(request, inputs.task_manager(), seed=options.seed)
        groups = loaded.groups
        fingerprints = {name: loaded.fingerprint(name) for name in loaded.tasks} if options.result_cache else {}
    except DataError as error:
        return Quality(failures=(_failed(request.name, error),))
    for number, name in enumerate(loaded.tasks, start=1):
        try:
            for each in evaluated_models:
                place = f" ({number} of {len(loaded.tasks)} of {request.name})" if len(loaded.tasks) > 1 else ""
                results[each.role][name] = _task_result(loaded, name, fingerprints.get(name), each, place)
        except DataError as error:
            failures.append(_failed(name, error))
            for found in results.values():
                found.pop(name, None)
    new = collect(results[evaluated.role], groups)
    old = collect(results[base.role], groups) if base is not None else None

    def measurements(figures: Mapping[str, Any]) -> tuple[Measurement, ...]:
        how = {"seed": options.seed, "batch_size": options.batch_size}
        return tuple(replace(each, settings={**each.settings, **how}) for each in harness_measurements(figures))

    return Quality(
        measurements(old) if old is not None else (),
        measurements(new),
        ()
        if base is None or old is None
        else compare_tasks(results[base.role], results[evaluated.role], old, new, groups, seed=options.seed),
        (),
        tuple(failures),
    )


def _failed(name: str, error: DataError) -> Failure:
    note(f"not measured: {error}")
    return Failure(name, str(error))


def _task_result(
    loaded: LoadedTasks, name: str, fingerprint: str | None, evaluated: EvaluatedModel, place: str
) -> TaskResult:
    seed = evaluated.options.seed
    key = {"kind": "task", "name": name, "task": fingerprint, "seed": seed, "num_fewshot": loaded.request.num_fewshot}
    key["own"] = loaded.builtin

    def measure() -> Any:
        note(f"{name} ({evaluated.role}){place}")
        return run_task(loaded, name, evaluated.language_model, seed=seed).to_dict()

    return TaskResult.from_dict(evaluated.cached(key, measure))


def _write_samples(options: QualityOptions, evaluated: EvaluatedModel, base: EvaluatedModel | None) -> Quality:
    """Let both models continue the fixed prompts."""
    count = options.sample_new_tokens
    if not count:
        return Quality()
    key = {"kind": "samples", "name": "samples", "prompts": list(PROMPTS), "max_new_tokens": count}
    key["at_once"] = len(PROMPTS)  # in bfloat16 a batch may yield another token than a single prompt

    def written(each: EvaluatedModel) -> Sequence[str]:
        found: Sequence[str] = each.cached(
            key, lambda: write_samples(each.model, each.tokenizer, count, name=each.name)
        )
        return found

    old = [None] * len(PROMPTS) if base is None else written(base)
    settings = {"max_new_tokens": count, "do_sample": False, "chat_template": has_template(evaluated.tokenizer)}
    pairs = zip(PROMPTS, old, written(evaluated), strict=True)
    return Quality(samples=tuple(Sample(prompt, before, after, settings) for prompt, before, after in pairs))
