"""Quality of one model, or of a model and its base: texts, tasks and samples, each cached once measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..core.digest import tensor_digest
from ..core.limits import check_lengths, check_tokens, max_positions
from ..core.progress import note
from ..errors import DataError
from ..report.measurement import Comparison, Failure, Measurement, Sample
from ..text.token_map import TokenMap
from ..text.windows import beginning, beginning_name
from .comparison import compare_text
from .evaluated_model import EvaluatedModel
from .harness import LoadedTasks, TaskResult, collect, harness_measurements, load_tasks, run_task
from .inputs import EvaluationInputs, Reader, SharedTexts
from .options import QualityOptions
from .passages import Passage, TextWindows, retokenize
from .samples import PROMPTS, has_template, write_samples
from .shared_windows import SharedWindow
from .task_comparison import compare_tasks
from .task_groups import TaskRequest, requested_tasks
from .text_quality import (
    WindowFigures,
    figure_measurements,
    passage_figures,
    same_tokens,
    shared_figures,
    window_figures,
)

_LEFT_OUT = "perplexity, KL divergence and agreement count tokens and are left out; bits per byte is measured for both"


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
    tokens = None if base is None or reason is None else inputs.token_map(_reader(base), _reader(evaluated))
    if base is not None and (reason is None or tokens is not None):
        check_lengths(base.source.config, base.name, eval_length=options.eval_length)
    shared: SharedTexts = {}
    if base is not None and tokens is not None:
        shared = inputs.shared_windows(_reader(base), _reader(evaluated), tokens)
    elif reason is not None:
        note(f"{reason}: {_LEFT_OUT}")
    for source, label in zip(inputs.sources, inputs.labels, strict=True):
        settings = {"length": options.eval_length, "seed": options.seed, "fingerprint": source.fingerprint()}
        settings |= _begins_with(evaluated, base if reason is not None else None)
        windows = shared.get(label)
        if base is not None and tokens is not None and windows is not None:
            found += _compare_shared(windows, tokens, label, settings, evaluated, base, seed=options.seed)
        elif base is not None and reason is not None:
            if tokens is not None:
                note(f"{label} has text that one of the tokenizers has no token for: {_LEFT_OUT}")
            text = inputs.windows()[label]
            found += _compare_passages(text, label, settings, evaluated, base, seed=options.seed)
        else:
            found += _measure_text(inputs.windows()[label], label, settings, evaluated, base, seed=options.seed)
    return found


def _measure_text(
    windows: TextWindows,
    label: str,
    settings: dict[str, Any],
    evaluated: EvaluatedModel,
    base: EvaluatedModel | None,
    *,
    seed: int,
) -> Quality:
    """Measure a model on a text, alone or with a base that has the same tokens."""
    key = {
        "kind": "text",
        "name": label,
        "windows": tensor_digest(windows.ids),
        "bytes": None if windows.passages is None else [passage.bytes for passage in windows.passages],
        "base": base.fingerprint if base is not None and evaluated.options.result_cache else None,
    }

    def measure() -> Any:
        names = (evaluated.name, "" if base is None else base.name)
        each = window_figures(evaluated.model, None if base is None else base.model, windows, label, names)
        return [None if figures is None else asdict(figures) for figures in each]

    old, new = (None if each is None else WindowFigures.from_dict(each) for each in evaluated.cached(key, measure))
    assert new is not None
    return Quality(
        figure_measurements(old, label, settings) if old else (),
        figure_measurements(new, label, settings),
        tuple(compare_text(old, new, label, per_token=True, seed=seed)) if old else (),
    )


def _compare_shared(
    windows: Sequence[SharedWindow],
    tokens: TokenMap,
    label: str,
    settings: dict[str, Any],
    evaluated: EvaluatedModel,
    base: EvaluatedModel,
    *,
    seed: int,
) -> Quality:
    """Compare a model on a text with a base that has more tokens, each in its own."""
    for each, ids in (
        (evaluated, [window.ids for window in windows]),
        (base, [window.base_ids for window in windows]),
    ):
        check_tokens(torch.cat(ids), each.source.config.vocab_size, each.tokenizer, label, each.name)
    same = same_tokens(windows, tokens)
    if not same:
        note(
            f"{evaluated.name} has {evaluated.source.config.vocab_size:,} of the base's "
            f"{base.source.config.vocab_size:,} rows: on {label}, KL divergence and agreement are measured where both "
            "have a boundary between tokens, and perplexity is left out"
        )
    key = {
        "kind": "carried",
        "name": label,
        "windows": [
            tensor_digest(torch.cat([getattr(window, name) for window in windows]))
            for name in ("base_ids", "ids", "base_at", "at")
        ],
        "lengths": [(len(each.base_ids), each.base_context, len(each.ids), each.context) for each in windows],
        "bytes": [each.bytes for each in windows],
        "tokens": tensor_digest(tokens.carried),
        "base": base.fingerprint if evaluated.options.result_cache else None,
    }

    def measure() -> Any:
        names = (evaluated.name, base.name)
        return [
            asdict(figures) for figures in shared_figures(evaluated.model, base.model, windows, tokens, label, names)
        ]

    old, new = (WindowFigures.from_dict(each) for each in evaluated.cached(key, measure))
    how = {"per_token": same, "counts_tokens": not same}
    return Quality(
        figure_measurements(old, label, settings, **how),
        figure_measurements(new, label, settings, **how),
        tuple(compare_text(old, new, label, **how, seed=seed)),
    )


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


def _reader(evaluated: EvaluatedModel) -> Reader:
    return evaluated.source, evaluated.tokenizer


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
        how = {"seed": options.seed, "batch_size": options.batch_windows}
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
    if count and evaluated.session.offloads:
        note("samples are left out: every token of them would read all layers from disk")
        count = 0
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
