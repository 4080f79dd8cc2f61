"""Drafts of one model, from the request to the output folder.

1. The base continues prompts by greedy decoding.
2. Every shape is cut and repaired. One pass over what the base wrote says where the draft would choose the same, steps
   are timed in turn, and a replay of rounds gives what is expected, and how many tokens to draft.
3. The best expected are recovered, where that is asked, and timed with the base in turn; outputs are compared.
4. The fastest is written, with the record and a section of the card.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from ..architectures.description import LAYERS
from ..checkpoint.session import Session
from ..checkpoint.source import open_source
from ..configuration import IShrinkConfig
from ..core.limits import check_lengths
from ..core.locks import claimed_folder
from ..core.output import check_not_inside, check_output, staged_folder
from ..core.processes import process_count
from ..core.progress import note
from ..errors import DataError, RequestError, ShapeError
from ..evaluation.environment import environment
from ..modeling.early_exit import check_exits, check_exits_run
from ..report.draft import DraftExpectation, DraftRecord, DraftTiming, TriedDraft
from ..text.sources import PYDOC, TextSource, label_sources, parse_sources, windows_per_source
from ..text.windows import token_windows
from .formula import LENGTHS, Policy, StepCosts, best_policy, expected_speedup, expected_tokens
from .on_llama_cpp import OnLlamaCpp
from .on_pytorch import OnPyTorch
from .options import DraftOptions
from .own_text import Choices, OwnText, agreement
from .refusals import check_base, check_base_class, check_draft_class, check_same_tokens, check_vocabulary
from .shapes_tried import Candidate, DraftMaker, shapes_to_try
from .written_draft import write_draft


class Runtime(Protocol):
    """What runs a base and its drafts."""

    build: str
    base_type: str
    draft_type: str

    def texts(self, prompts: torch.Tensor) -> list[OwnText]:
        """Return what the base writes after prompts by greedy decoding."""

    def expected(self, candidate: Candidate, texts: Sequence[OwnText]) -> tuple[list[Choices], StepCosts]:
        """Return where a draft would choose what the base wrote, and what a round costs."""

    def together(
        self, chosen: Sequence[tuple[Candidate, Policy]], texts: Sequence[OwnText]
    ) -> Mapping[str, DraftTiming]:
        """Return what is measured of drafts and their base together, by the drafts' names."""

    def write(self, candidate: Candidate, folder: Path) -> None:
        """Write what the runtime reads beside a checkpoint."""


def work_folder(output: Path) -> Path:
    """Return where drafts are made: a folder beside the output, so that the same command finds it again.

    Args:
        output: The output folder.
    """
    resolved = output.resolve()
    return resolved.with_name(f"{resolved.name}.partial")


def make_draft(
    session: Session,
    config: IShrinkConfig,
    options: DraftOptions,
    output: Path | None,
    *,
    overwrite: bool = False,
) -> DraftRecord:
    """Make drafts of a model, or take what is named, measure them, and write the fastest.

    Args:
        session: The run over the base.
        config: How to calibrate, choose, repair and recover. Its shape is not read.
        options: Which drafts are tried, what runs them, and on what they are measured.
        output: The output folder; it appears whole or not at all. None where nothing is made, to write nothing.
        overwrite: Replace what is in it.

    Returns:
        The record.

    Raises:
        RequestError: The request cannot be met.
        ShapeError: No draft is as fast as was asked for; the message has the nearest, and nothing is written.
    """
    given = _check(session, config, options, output, overwrite=overwrite)
    base = session.source
    if options.runtime == "pytorch":
        check_base(base, session.model)
    with _runtime(session, options) as runtime:
        texts = runtime.texts(_prompts(session, config, options))
        with _made_in(output, making=not options.measures_only) as folder:
            record, best = _try(session, config, options, runtime, texts, given, folder, output)
            _check_target(record, options)
            if output is not None:
                with staged_folder(output, overwrite=overwrite) as staged:
                    write_draft(record, staged, best.source.folder if best.made and best.source else None)
                    runtime.write(best, staged)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def _check(
    session: Session, config: IShrinkConfig, options: DraftOptions, output: Path | None, *, overwrite: bool
) -> list[Candidate]:
    """Check all that can be known before long work; return the drafts that are not made."""
    if process_count() > 1:
        raise RequestError("drafts are made and timed in one process; run the command without torchrun")
    base = session.source
    check_base_class(base)
    sources = _texts(options)
    for text in sources:
        text.check()
        if text.is_self:
            raise DataError("--draft-text cannot be 'self': name text that the model is to continue")
    check_lengths(base.config, base.display_name, prompt_length=options.prompt_length + options.new_tokens)
    given: list[Candidate] = []
    if options.early_exit is not None:
        check_exits(options.early_exit, base.binding.shape[LAYERS])
        check_exits_run(base.config, base.binding)
        for count in options.early_exit:
            given.append(Candidate(f"exit after {count} layers", {"early_exit": count}, None, exit=count))
    for name in options.draft_model or ():
        source = open_source(name)
        source.check_architecture()
        check_draft_class(source)
        check_same_tokens(base, source)
        shape = {key: size for key, size in source.binding.shape.items() if base.binding.shape.get(key) != size}
        given.append(Candidate(source.display_name.split("/")[-1], shape, source))
    names = [each.name for each in given]
    if len(set(names)) < len(names):
        raise RequestError(f"two of the drafts have one name, {max(names, key=names.count)}; name each once")
    if output is None:
        if not options.measures_only:
            raise RequestError("name the output folder that the draft is written to")
        return given
    check_output(output, overwrite)
    inputs = [base.folder, Path(base.name), *(each.source.folder for each in given if each.source)]
    check_not_inside(output, [*inputs, *(text.path for text in sources if text.path)])
    if not options.measures_only:
        check_vocabulary(config)
        shapes_to_try(base.binding.shape, options)
    return given


def _texts(options: DraftOptions) -> tuple[TextSource, ...]:
    return parse_sources(options.draft_text) if options.draft_text else (TextSource(PYDOC),)


def _prompts(session: Session, config: IShrinkConfig, options: DraftOptions) -> torch.Tensor:
    """Return the prompts, shape (prompts, length)."""
    found = [
        token_windows(
            source.documents(), session.tokenizer, options.prompt_length, count, seed=config.seed, label=source.label
        )
        for source, count in windows_per_source(_texts(options), options.draft_prompts)
        if count
    ]
    prompts = torch.cat(found)
    session.check_tokens(prompts, ", ".join(label_sources(_texts(options))))
    return prompts


@contextmanager
def _made_in(output: Path | None, *, making: bool) -> Iterator[Path | None]:
    """Keep the folder to this process in which drafts are made; None where none is."""
    if output is None or not making:
        yield None
        return
    folder = work_folder(output)
    try:
        with claimed_folder(folder, "makes drafts"):
            yield folder
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was made is in {folder}; run the same command again to resume") from None


def _try(
    session: Session,
    config: IShrinkConfig,
    options: DraftOptions,
    runtime: Runtime,
    texts: Sequence[OwnText],
    given: Sequence[Candidate],
    folder: Path | None,
    output: Path | None,
) -> tuple[DraftRecord, Candidate]:
    """Make what is to be made, measure everything; return the record and the fastest draft."""
    maker = None
    candidates = list(given)
    if folder is not None and output is not None:
        maker = DraftMaker(session, config, folder, output.resolve().name)
        candidates = _cut(maker, shapes_to_try(session.source.binding.shape, options), asked=options.draft_layers)
    tried = {each.name: _tried(session, each, _expect(runtime, each, texts)) for each in candidates}
    known = {each.name: each for each in candidates}
    most = options.candidates if maker is not None else len(tried)
    chosen = sorted(tried, key=lambda name: -tried[name].expected.speedup)[:most]
    for name in chosen if config.recovers else ():
        if maker is None:
            break
        known[name] = maker.recover(known[name])
        again = _expect(runtime, known[name], texts)
        tried[name] = replace(tried[name], recovered=True, expected_recovered=again)
    timings = runtime.together([(known[name], _policy(tried[name])) for name in chosen], texts)
    for name, timing in timings.items():
        tried[name] = replace(tried[name], timing=timing)
    best = max(chosen, key=lambda name: tried[name].speedup)
    record = DraftRecord(
        model=session.base_name,
        base=dict(session.source.binding.shape),
        num_parameters=session.source.binding.num_parameters(),
        runtime=options.runtime,
        build=runtime.build,
        base_type=runtime.base_type,
        draft_type=runtime.draft_type,
        texts=tuple(label_sources(_texts(options))),
        prompts=len(texts),
        prompt_length=options.prompt_length,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
        tried=tuple(sorted(tried.values(), key=lambda each: (each.timing is None, -each.speedup))),
        best=best,
        target=options.target,
        environment=environment(session.device, session.dtype),
    )
    return record, known[best]


def _cut(maker: DraftMaker, shapes: Sequence[dict[str, int]], *, asked: object) -> list[Candidate]:
    """Cut every shape; one that was not asked for by its depth, and that the model cannot have, is noted."""
    found, refused = [], None
    for shape in shapes:
        try:
            found.append(maker.cut(shape))
        except ShapeError as error:
            if asked is not None:
                raise
            refused = error
            note(f"not tried: {', '.join(f'{key}={size}' for key, size in shape.items())}: {error}")
    if not found:
        assert refused is not None, "there is a shape to try"
        raise refused
    return found


def _tried(session: Session, candidate: Candidate, expected: DraftExpectation) -> TriedDraft:
    source = candidate.source or session.source
    return TriedDraft(
        name=candidate.name,
        shape=candidate.shape,
        num_parameters=source.binding.num_parameters(),
        expected=expected,
        made=candidate.made,
    )


def _policy(draft: TriedDraft) -> Policy:
    return Policy(draft.known.num_assistant_tokens, draft.known.confidence_threshold)


def _expect(runtime: Runtime, candidate: Candidate, texts: Sequence[OwnText]) -> DraftExpectation:
    return expectation(*runtime.expected(candidate, texts))


def expectation(found: Sequence[Choices], costs: StepCosts) -> DraftExpectation:
    """Return what is expected of a draft.

    Args:
        found: Its choices on what the base wrote.
        costs: What a round costs.
    """
    share = agreement(found)
    policy, rounds = best_policy([(each.matches, each.confidences) for each in found], costs)
    return DraftExpectation(
        step_cost=costs.draft,
        pass_costs={str(count): cost for count, cost in costs.passes.items()},
        agreement=share,
        num_assistant_tokens=policy.length,
        confidence_threshold=policy.threshold,
        tokens_per_pass=rounds.tokens_per_pass,
        formula_tokens_per_pass=expected_tokens(share, policy.length),
        speedup=rounds.speedup(costs),
        formula_speedup=max(expected_speedup(share, length, costs.draft) for length in LENGTHS),
    )


def _check_target(record: DraftRecord, options: DraftOptions) -> None:
    """Check that the fastest draft is as fast as was asked for.

    Raises:
        ShapeError: It is not.
    """
    wanted, best = options.wanted_speed, record.best_draft
    if wanted is None or best.speedup >= wanted:
        return
    timing = best.timing
    assert timing is not None, "the best one was timed"
    raise ShapeError(
        f"no draft reaches {options.target} (x{wanted:.2f}) here: the nearest, {best.name}, decodes at "
        f"x{timing.speed.ratio:.2f} of the base alone ({timing.acceptance:.0%} of its tokens accepted, a step costs "
        f"{best.known.step_cost:.2f} of the base's); nothing was written; leave out --target to write it"
    )


@contextmanager
def _runtime(session: Session, options: DraftOptions) -> Iterator[Runtime]:
    """Open what runs the base and its drafts; what it wrote for that is removed at the end."""
    if options.runtime == "llama.cpp":
        with OnLlamaCpp.opened(session, options) as runtime:
            yield runtime
    else:
        yield OnPyTorch(session, options)
