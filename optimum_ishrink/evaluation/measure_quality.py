"""Quality of one model, or of a model beside its base: texts, tasks and samples, each kept when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint.fingerprint import model_fingerprint
from ..checkpoint.session import Session, evaluation_sources
from ..checkpoint.source import Source, load_model
from ..core.digest import tensor_digest
from ..core.progress import note
from ..errors import DataError
from ..importance.score_cache import cache_folder
from ..report.measurement import Comparison, Failure, Measurement, Sample
from .comparison import compare_text
from .environment import environment
from .harness import LoadedTasks, TaskResult, collect, harness_measurements, language_model, load_tasks, run_task
from .passages import TextWindows
from .result_cache import ResultCache, result_folder
from .samples import PROMPTS, has_template, write_samples
from .task_comparison import compare_tasks
from .task_groups import TaskRequest, requested_tasks
from .text_quality import WindowFigures, figure_measurements, passage_figures, window_figures


class Subject:
    """A model to be measured: it is loaded when something about it is not known yet.

    Args:
        source: Where it is.
        session: The run, which knows dtype, device and whether results are kept.
        load: Loads it; by default from the source's folder.
        role: What messages call it: `base` or `model`.
    """

    def __init__(self, source: Source, session: Session, role: str, load: Callable[[], Any] | None = None) -> None:
        self.source = source
        self.session = session
        self.role = role
        self._load = load or (lambda: load_model(source.folder, session.dtype, session.device))

    @cached_property
    def model(self) -> Any:
        """The loaded model."""
        return self._load()

    @cached_property
    def tokenizer(self) -> Any:
        """Its own tokenizer."""
        return self.source.load_tokenizer()

    @cached_property
    def language_model(self) -> Any:
        """The model as lm-eval takes it."""
        return language_model(self.model, self.tokenizer, self.session.config.batch_size)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of its files."""
        return model_fingerprint(self.source)

    @cached_property
    def _cache(self) -> ResultCache:
        kept = self.session.config.result_cache
        return ResultCache(result_folder(cache_folder(), self.fingerprint) if kept else None)

    @cached_property
    def _place(self) -> dict[str, Any]:
        """What every result depends on besides the model and what is put to it."""
        found = environment(self.session.device, self.session.dtype)
        names = ("device", "accelerator", "cpu", "dtype", "versions")
        return {**{name: found[name] for name in names}, "batch_size": self.session.config.batch_size}

    def measured(self, key: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """Return a result as plain values: the one that is kept, or what `measure` gives, which is kept then.

        Args:
            key: What the result depends on besides this model; `kind` and `name` say what it is.
            measure: Measures it.
        """
        if not self.session.config.result_cache:
            return measure()
        whole = {**key, **self._place}
        found = self._cache.read(whole)
        if found is not None:
            note(f"{key['name']} ({self.role}): taken from the cache ({self._cache.folder})")
            return found
        result = measure()
        self._cache.write(whole, result)
        return result


@dataclass(frozen=True)
class Quality:
    """What was measured.

    Args:
        base: The base's figures; empty without a base.
        shrunk: The model's.
        comparisons: How much of each figure is kept.
        samples: What both write behind fixed prompts.
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


def measure_quality(session: Session, subject: Subject, base: Subject | None) -> Quality:
    """Measure texts, tasks and samples as the config asks.

    Args:
        session: The run.
        subject: The model in question.
        base: What it is compared with, or None.

    Raises:
        DataError: A text cannot be used.
    """
    found = measure_texts(session, subject, base)
    for request in requested_tasks(session.config.tasks, session.config.num_fewshot):
        found += _measure_task(session, request, subject, base)
    return found + _write_samples(session, subject, base)


def measure_texts(session: Session, subject: Subject, base: Subject | None) -> Quality:
    """Measure the evaluation texts.

    Args:
        session: The run; its windows are in the tokens of its source.
        subject: The model in question.
        base: What it is compared with, or None.

    Raises:
        DataError: A window is longer than a model can read, or a text has no bytes to count where that is needed.
    """
    config, found = session.config, Quality()
    reason = None if base is None else difference(subject, base)
    if reason is not None:
        note(
            f"{reason}: perplexity, KL divergence and agreement count tokens and are left out; "
            "bits per byte is measured for both"
        )
    for source, (label, windows) in zip(evaluation_sources(config), session.evaluation_windows.items(), strict=True):
        settings = {"length": config.eval_length, "seed": config.seed, "fingerprint": source.fingerprint()}
        if base is not None and reason is not None:
            found += _compare_passages(windows, label, settings, subject, base, seed=config.seed)
            continue
        key = {
            "kind": "text",
            "name": label,
            "windows": tensor_digest(windows.ids),
            "bytes": None if windows.passages is None else [passage.bytes for passage in windows.passages],
            "base": base.fingerprint if base is not None and config.result_cache else None,
        }

        def measure(windows: TextWindows = windows, label: str = label) -> Any:
            each = window_figures(subject.model, None if base is None else base.model, windows, label)
            return [None if figures is None else asdict(figures) for figures in each]

        old, new = (None if each is None else WindowFigures.from_dict(each) for each in subject.measured(key, measure))
        assert new is not None
        found += Quality(
            figure_measurements(old, label, settings) if old else (),
            figure_measurements(new, label, settings),
            tuple(compare_text(old, new, label, per_token=True, seed=config.seed)) if old else (),
        )
    return found


def difference(subject: Subject, base: Subject) -> str | None:
    """Return in what two models' tokens differ, so that figures per token cannot be compared; None when they do not.

    Args:
        subject: The model in question.
        base: What it is compared with.
    """
    ours, theirs = subject.tokenizer.get_vocab(), base.tokenizer.get_vocab()
    if ours != theirs:
        odd = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        numbers = f"token {odd!r} has number {theirs.get(odd)} there and {ours.get(odd)} here"
        return f"the base has another tokenizer ({numbers})"
    sizes = (base.source.config.vocab_size, subject.source.config.vocab_size)
    if sizes[0] == sizes[1]:
        return None
    return f"the models do not share a vocabulary ({sizes[0]} and {sizes[1]} tokens)"


def _compare_passages(
    windows: TextWindows, label: str, settings: dict[str, Any], subject: Subject, base: Subject, *, seed: int
) -> Quality:
    """Measure both models' bits per byte on a text, each in its own tokens."""
    passages = windows.passages
    if passages is None:
        raise DataError(
            f"the model's tokenizer does not say which text a token stands for, so {label} has no bytes to count; "
            "leave out --base, or measure tasks alone"
        )
    key = {"kind": "passages", "name": label, "passages": [asdict(passage) for passage in passages]}

    def figures(each: Subject) -> WindowFigures:
        def measure() -> Any:
            return asdict(passage_figures(each.model, each.tokenizer, passages, label))

        return WindowFigures.from_dict(each.measured(key, measure))

    old, new = figures(base), figures(subject)
    return Quality(
        figure_measurements(old, label, settings, per_token=False),
        figure_measurements(new, label, settings, per_token=False),
        tuple(compare_text(old, new, label, per_token=False, seed=seed)),
    )


def _measure_task(session: Session, request: TaskRequest, subject: Subject, base: Subject | None) -> Quality:
    """Measure one task, or all tasks of a group, on both models; one that cannot be had does not end the run."""
    subjects = [subject] if base is None else [base, subject]
    results: dict[str, dict[str, TaskResult]] = {each.role: {} for each in subjects}
    failures: list[Failure] = []
    groups: Mapping[str, Any] = {}
    try:
        loaded = load_tasks(request, session.task_manager, seed=session.config.seed)
        groups = loaded.groups
        prints = {name: loaded.fingerprint(name) for name in loaded.tasks} if session.config.result_cache else {}
    except DataError as error:
        return Quality(failures=(_failed(request.name, error),))
    for number, name in enumerate(loaded.tasks, start=1):
        try:
            for each in subjects:
                place = f" ({number} of {len(loaded.tasks)} of {request.name})" if len(loaded.tasks) > 1 else ""
                results[each.role][name] = _task_result(loaded, name, prints.get(name), each, place)
        except DataError as error:
            failures.append(_failed(name, error))
            for found in results.values():
                found.pop(name, None)
    new = collect(results[subject.role], groups)
    old = collect(results[base.role], groups) if base is not None else None

    def measurements(figures: Mapping[str, Any]) -> tuple[Measurement, ...]:
        how = {"seed": session.config.seed, "batch_size": session.config.batch_size}
        return tuple(replace(each, settings={**each.settings, **how}) for each in harness_measurements(figures))

    return Quality(
        measurements(old) if old is not None else (),
        measurements(new),
        ()
        if base is None or old is None
        else compare_tasks(results[base.role], results[subject.role], old, new, groups, seed=session.config.seed),
        (),
        tuple(failures),
    )


def _failed(name: str, error: DataError) -> Failure:
    note(f"not measured: {error}")
    return Failure(name, str(error))


def _task_result(loaded: LoadedTasks, name: str, fingerprint: str | None, subject: Subject, place: str) -> TaskResult:
    seed = subject.session.config.seed
    key = {"kind": "task", "name": name, "task": fingerprint, "seed": seed, "num_fewshot": loaded.request.num_fewshot}
    key["own"] = loaded.own

    def measure() -> Any:
        note(f"{name} ({subject.role}){place}")
        return run_task(loaded, name, subject.language_model, seed=seed).to_dict()

    return TaskResult.from_dict(subject.measured(key, measure))


def _write_samples(session: Session, subject: Subject, base: Subject | None) -> Quality:
    """Let both models write behind the fixed prompts."""
    count = session.config.sample_new_tokens
    if not count:
        return Quality()
    key = {"kind": "samples", "name": "samples", "prompts": list(PROMPTS), "max_new_tokens": count}
    key["at_once"] = len(PROMPTS)  # in bfloat16 a batch may choose another token than a prompt alone

    def written(each: Subject) -> Sequence[str]:
        found: Sequence[str] = each.measured(key, lambda: write_samples(each.model, each.tokenizer, count))
        return found

    old = [None] * len(PROMPTS) if base is None else written(base)
    settings = {"max_new_tokens": count, "do_sample": False, "chat_template": has_template(subject.tokenizer)}
    pairs = zip(PROMPTS, old, written(subject), strict=True)
    return Quality(samples=tuple(Sample(prompt, before, after, settings) for prompt, before, after in pairs))


def checkpoint_subject(session: Session, folder: Path) -> Subject:
    """Return a checkpoint folder as a model to be measured."""
    return Subject(Source(folder.name, folder), session, "model")


def source_subject(session: Session, role: str) -> Subject:
    """Return a run's own source as a model to be measured."""
    return Subject(session.source, session, role, lambda: session.model)
