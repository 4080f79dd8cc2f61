"""The evaluation stage: quality and speed of a result, compared with its base where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import torch

from ..checkpoint.session import Session
from ..checkpoint.source import Source
from ..checkpoint.tensors import TensorInfo, read_index
from ..core.finite import check_predictions
from ..core.limits import check_lengths
from ..core.progress import note
from ..report.measurement import Measurement
from ..report.report import ModelReport, Report
from ..text.sources import TextSource
from .environment import environment
from .evaluated_model import EvaluatedModel
from .inputs import EvaluationInputs, check_evaluation_texts
from .measure_quality import Quality, measure_quality, measure_texts
from .measure_speed import add_speed, check_positions
from .options import EvaluationOptions
from .samples import check_samples

_FEW_TOKENS = torch.tensor([[0]])
"""What every model can read: a model whose numbers are not finite is not worth timing."""


class Evaluation:
    """The evaluation of one run.

    Args:
        session: The run; evaluation texts are in the tokens of its source.
        options: What to measure.
    """

    def __init__(self, session: Session, options: EvaluationOptions) -> None:
        self.session = session
        self.options = options
        self.inputs = EvaluationInputs(options, session)

    def check(self, *sources: Source, others: Mapping[str, Sequence[TextSource]] = MappingProxyType({})) -> None:
        """Check everything that can be checked before long work.

        Args:
            sources: The models; the first one's tokenizer is that of the texts.
            others: What else the run reads text for, such as `calibration`, and those texts.

        Raises:
            DataError: A text is missing, too short, sampled from the model or read for another purpose as well, or a
                task does not exist.
            RequestError: A model has too few positions for what is to be measured or timed.
        """
        if self.options.benchmark:
            check_positions(self.options, *(source.config for source in sources))
        if self.options.evaluate:
            check_evaluation_texts(self.options, others)
            self._check_limits(sources)

    def _check_limits(self, sources: Sequence[Source]) -> None:
        """Check that the models can read the texts, and the prompts of the samples."""
        options = self.options
        tokenizers = {source: source.load_tokenizer() for source in sources}
        for number, source in enumerate(sources):
            # A base with other tokens reads the same text in windows of other lengths, which are checked one by one.
            if not number or tokenizers[source].get_vocab() == tokenizers[sources[0]].get_vocab():
                check_lengths(source.config, source.display_name, eval_length=options.eval_length)
                continue
            base, model = ((each, tokenizers[each]) for each in (source, sources[0]))
            tokens = self.inputs.token_map(base, model)
            if tokens is not None:
                check_lengths(source.config, source.display_name, eval_length=options.eval_length)
                self.inputs.shared_windows(base, model, tokens)
        self.inputs.check()
        if options.sample_new_tokens:
            for source, tokenizer in tokenizers.items():
                check_samples(source.config, tokenizer, options.sample_new_tokens, source.display_name)

    def measure_divergence(self, folder: Path, *, name: str) -> tuple[Measurement, ...]:
        """Measure how far a checkpoint is from the run's source on the evaluation texts.

        Args:
            folder: The checkpoint.
            name: Its name in messages.

        Returns:
            KL divergence and top-1 agreement on each text.
        """
        found = measure_texts(
            self.inputs, self._checkpoint(folder, name), self._evaluated(self.session.source, "base")
        )
        return tuple(each for each in found.shrunk if each.metric in ("kl_divergence", "top1_agreement"))

    def compare_checkpoint(self, folder: Path, *, name: str) -> Report:
        """Measure a checkpoint and compare it with the run's source.

        Args:
            folder: The checkpoint.
            name: Its name in the report.
        """
        base = size_report(self.session.source.tensors, self.session.base_name)
        return self._report(
            self._checkpoint(folder, name),
            size_report(read_index(folder), name),
            self._evaluated(self.session.source, "base"),
            base,
        )

    def measure_checkpoint(self, folder: Path, *, name: str) -> Report:
        """Measure a checkpoint without a base.

        Args:
            folder: The checkpoint.
            name: Its name in the report.
        """
        return self._report(self._checkpoint(folder, name), size_report(read_index(folder), name), None, None)

    def measure_source(self, base: Source | None) -> Report:
        """Measure the run's source, compared with another model or alone.

        Args:
            base: The model to compare with, or None.
        """
        session = self.session
        return self._report(
            self._evaluated(session.source, "model"),
            size_report(session.source.tensors, session.source.display_name),
            None if base is None else self._evaluated(base, "base"),
            None if base is None else size_report(base.tensors, self.options.base_model or base.display_name),
        )

    def _evaluated(self, source: Source, role: str) -> EvaluatedModel:
        return EvaluatedModel(source, self.session, self.options, role)

    def _checkpoint(self, folder: Path, name: str) -> EvaluatedModel:
        # A folder has another name until it is complete.
        return self._evaluated(Source(name, folder), "model")

    def _report(
        self,
        evaluated: EvaluatedModel,
        shrunk: ModelReport,
        base: EvaluatedModel | None,
        base_report: ModelReport | None,
    ) -> Report:
        """Measure a model, compared with its base where there is one, and return the report."""
        found = measure_quality(self.inputs, evaluated, base) if self.options.evaluate else Quality()
        shrunk = replace(shrunk, quality=found.shrunk)
        old = None if base_report is None else replace(base_report, quality=found.base)
        if self.options.benchmark and self.session.offloads:
            note("timing is left out: it would load the whole model, whose layers are read from disk here")
        elif self.options.benchmark:
            for each in (base, evaluated):
                if each is not None:
                    check_predictions(each.model, _FEW_TOKENS, each.name, "a prompt that is timed")
            timed = [("shrunk", evaluated, shrunk)]
            if base is not None and old is not None:
                timed.insert(0, ("base", base, old))
            reports = add_speed(
                self.options,
                {role: report for role, _, report in timed},
                {role: each.model for role, each, _ in timed},
                {role: each.source.folder for role, each, _ in timed},
                dtype=self.session.dtype,
                device=self.session.device,
            )
            old, shrunk = reports.get("base", old), reports["shrunk"]
        return Report(
            old,
            shrunk,
            environment(self.session.device, self.session.dtype),
            found.comparisons,
            found.samples,
            found.failures,
        )


def size_report(tensors: Mapping[str, TensorInfo], name: str) -> ModelReport:
    """Return parameters and bytes of a checkpoint, read from its files' headers.

    Args:
        tensors: The checkpoint's tensors.
        name: Its name in the report.
    """
    parameters = sum(torch.Size(info.shape).numel() for info in tensors.values())
    return ModelReport(name, parameters, sum(info.nbytes for info in tensors.values()))
