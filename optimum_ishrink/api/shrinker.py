"""IShrinker: what the command line does with a model, as methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..analysis.options import AnalysisOptions
from ..analysis.zero_out import analyze
from ..checkpoint.session import Session
from ..checkpoint.source import Source, open_source
from ..configuration import IShrinkConfig
from ..core.processes import is_main_process
from ..edge.export import export as export_source
from ..edge.gguf_export import GgufExport
from ..edge.options import ExportOptions, RuntimeOptions
from ..edge.quantized_export import QuantizedExport
from ..errors import RequestError
from ..evaluation.options import BENCHMARK_LENGTHS
from ..hub.destination import check_destination
from ..hub.options import PushOptions
from ..options.option import own_options
from ..pipeline.job import Job, open_teachers, recover_job, shrink_job
from ..pipeline.runner import RECOVER, make_plan
from ..pipeline.scheduling import pipeline_of
from ..pipeline.trimming import find_vocabulary
from ..pipeline.tying import before_cut
from ..planning.shape import resolve_shape
from ..recovery.options import USUAL_LOSS
from ..report.analysis import Analysis
from ..report.plan import Plan
from ..report.report import Report
from ..search.chosen_export import export_chosen
from .finding import FindsModels
from .given_model import given_model
from .llama_cpp import report_in_llama_cpp
from .measuring import measure
from .output_folder import expanded, remove_with, run_into
from .push import PushToHub
from .result import ShrinkResult
from .showing import ShowsModels
from .talking import TalksFromSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class IShrinker(PushToHub, FindsModels, ShowsModels, TalksFromSource):
    """Shrinks, recovers, measures, exports and publishes one model, as often and in as many shapes as needed.

    Args:
        source: Where the weights come from.
        dtype: Default compute dtype of the runs: `auto`, `bfloat16` or `float32`.
        device: Default device of the runs: `auto`, `cpu` or `cuda`.
    """

    def __init__(self, source: Source, *, dtype: str = "auto", device: str = "auto") -> None:
        self.source = source
        self._defaults = {"dtype": dtype, "device": device}
        self._session: Session | None = None
        self.owner: ShrinkResult | None = None
        """The result whose folder the source is, if any."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | PreTrainedModel,
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        token: str | bool | None = None,
        gguf_file: str | None = None,
    ) -> IShrinker:
        """Open a model. Its weights are read when they are needed.

        Args:
            pretrained_model_name_or_path: Hub id, folder of safetensors, or a loaded causal language model, also
                within `torch.compile` or `DataParallel`.
            tokenizer: The tokenizer of a loaded model.
            revision: Branch, tag or commit on the Hub.
            dtype: Compute dtype: `auto` (bfloat16 where the hardware supports it), `bfloat16` or `float32`.
            device: `auto` (CUDA where there is one), `cpu` or `cuda`.
            token: Hub token; it is never stored.
            gguf_file: Name of a GGUF file in the folder or repository.

        Raises:
            RequestError: The dtype or device is unknown.
            SourceError: There is no usable checkpoint.
            ArchitectureError: The architecture is not supported.
        """
        source = open_source(
            pretrained_model_name_or_path, tokenizer=tokenizer, revision=revision, token=token, gguf_file=gguf_file
        )
        source.check_architecture()
        names = {"dtype": str(dtype).removeprefix("torch."), "device": str(device)}
        IShrinkConfig(dtype=names["dtype"], device=names["device"])
        return cls(source, dtype=names["dtype"], device=names["device"])

    def _config(self, config: IShrinkConfig | None, changes: dict[str, Any]) -> IShrinkConfig:
        config = (config or IShrinkConfig()).replace(**changes)
        # Device and dtype of the shrinker hold for every run that does not name others.
        return config.replace(
            **{name: value for name, value in self._defaults.items() if getattr(config, name) == "auto"}
        )

    def _open(self, config: IShrinkConfig, *, may_offload: bool = False) -> Session:
        """Return a session that shares the loaded model of the last one, unless its layers come from disk."""
        session = Session(self.source, config, may_offload=may_offload)
        session.share(self._session)
        self._session = session
        return session

    def _pushed_folder(self) -> Path:
        return self.source.folder

    @property
    def _result_name(self) -> str:
        return f"{self.source.display_name.split('/')[-1]}-ishrink"

    def resolve_shape(self, config: IShrinkConfig | None = None, **changes: Any) -> dict[str, int]:
        """Return the shape that a config describes. Reads no weights.

        Args:
            config: The options; the defaults when None.
            **changes: Values that replace the config's, such as `target="params=-15%"`.

        Returns:
            Each dimension's size, by config key such as `intermediate_size`.

        Raises:
            ShapeError: The shape cannot be expressed, or the target cannot be met.
            SourceError: The vocabulary is to be cut, and cannot be.
        """
        config = (config or IShrinkConfig()).replace(**changes)
        source, removed = before_cut(self.source, config)
        rows = None if (found := find_vocabulary(self.source, config)) is None else found[1]
        return resolve_shape(source.binding, config, rows, removed=removed, may_stay=config.sparsifies)

    def plan(self, config: IShrinkConfig | None = None, *, check_all: bool = False, **changes: Any) -> Plan:
        """Return what would be removed, and write nothing.

        Args:
            config: The options; the defaults when None.
            check_all: Also check what else `shrink` would do: recovery, evaluation and timing. A teacher is
                downloaded for it.
            **changes: Values that replace the config's.

        Raises:
            RequestError: The request cannot be met.
        """
        config = self._config(config, changes)
        return make_plan(
            self._open(config, may_offload=True), config, check_all=check_all, pipeline=pipeline_of(config)
        )

    def analyze(
        self,
        config: IShrinkConfig | None = None,
        *,
        save_directory: str | Path | None = None,
        overwrite: bool = False,
        **changes: Any,
    ) -> Analysis:
        """Measure quality against sparsity, and the sensitivity of each layer, before anything is cut.

        Attention, MLP neurons, layers and all of them are set to zero in memory, the lowest scored units first; and
        each layer's attention, MLP and whole block alone. Nothing is repaired, so a cut with compensation or
        fine-tuning does better.

        Args:
            config: The criteria, calibration, tasks, protected layers and seed; its shape and target are not read. The
                defaults when None.
            save_directory: The output folder, for `analysis.json` and figures. Every finished measurement is stored
                beside it, in `SAVE_DIRECTORY.partial`, and the same call resumes from there. Nothing is written
                without it.
            overwrite: Replace what is in the output folder.
            **changes: Values that replace the config's, such as `importance="taylor"`, and the fields of
                `optimum_ishrink.analysis.options.AnalysisOptions`: `levels`, `analysis_samples`, `analysis_length`,
                `analysis_text` and `max_divergence`.

        Returns:
            The analysis; `shrink(config, **analysis.changes)` follows its advice.

        Raises:
            RequestError: The request cannot be met.
        """
        values = {name: changes.pop(name) for name in own_options(AnalysisOptions) if name in changes}
        options = AnalysisOptions(**values)
        config = self._config(config, changes)
        output = None if save_directory is None else expanded(save_directory)
        return analyze(self._open(config, may_offload=True), config, options, output, overwrite=overwrite)

    def shrink(
        self,
        config: IShrinkConfig | None = None,
        *,
        save_directory: str | Path | None = None,
        overwrite: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        private: bool = False,
        private_until_complete: bool = False,
        token: str | None = None,
        on_plan: Callable[[Plan], None] = lambda plan: None,
        command: str | None = None,
        command_words: Sequence[str] = (),
        **changes: Any,
    ) -> ShrinkResult:
        """Shrink the model: calibrate, plan, cut, repair, verify, measure, write the card.

        Args:
            config: The options; the defaults when None.
            save_directory: The output folder. Without it the result is in a temporary folder that exists as long as
                the result.
            overwrite: Replace what is in the output folder.
            push_to_hub: Upload the result; permission is checked before the work begins.
            repo_id: Where to; by default the output folder's name.
            private: Keep the repository private; one that is public is made private first.
            private_until_complete: Make a new repository private, and public once its commit is complete.
            token: Hub token; it is never stored.
            on_plan: Called with the plan before anything is cut.
            command: The command line that the card shows; by default that of the same request.
            command_words: More arguments of that command line.
            **changes: Values that replace the config's, such as `target="params=-15%"`.

        Returns:
            The result.

        Raises:
            RequestError: The request cannot be met; nothing was written.
            VerificationError: The written checkpoint is not what was planned; nothing was left behind.
            TrainingError: The recovery stopped before its end; the same call resumes it.
            PublishError: The upload is not permitted, which is checked first, or it failed; then the output folder is
                complete.
        """
        PushOptions(private=private, private_until_complete=private_until_complete)  # checked before the work
        if push_to_hub and repo_id is None and save_directory is None:
            raise RequestError("push_to_hub needs a repo_id, or a save_directory whose name it can take")
        if push_to_hub and is_main_process():
            check_destination(repo_id or expanded(str(save_directory)).name, token=token)
        config = self._config(config, changes)
        session = self._open(config, may_offload=True)

        def job(folder: Path) -> Job:
            return shrink_job(session, config, folder, *command_words, command=command, on_plan=on_plan)

        result, temporary = run_into(
            save_directory, pipeline_of(config), job, name=self._result_name, overwrite=overwrite, base=self.source
        )
        if push_to_hub and is_main_process():
            result.push_to_hub(
                repo_id or result.folder.name,
                private=private,
                private_until_complete=private_until_complete,
                token=token,
            )
        remove_with(result, temporary)  # not before the push: when that fails, the folder is all that there is
        return result

    def recover(
        self,
        config: IShrinkConfig | None = None,
        *,
        teacher: str | Path | Source | None = None,
        save_directory: str | Path | None = None,
        overwrite: bool = False,
        **changes: Any,
    ) -> ShrinkResult:
        """Train the model, a pruned checkpoint, into a new output folder, and measure it.

        Under `torchrun` all processes train and the first one writes.

        Args:
            config: The options; the defaults when None. `recovery="none"` means `skew-reverse-kl` here.
            teacher: The model to learn from; by default `recovery_teacher`, or the base that the plan names.
            save_directory: The output folder. Without it the result is in a temporary folder that exists as long as
                the result, and a training that stops cannot be resumed.
            overwrite: Replace what is in the output folder.
            **changes: Values that replace the config's, such as `recovery_tokens=400_000`.

        Returns:
            The result.

        Raises:
            RequestError: The request cannot be met; nothing was written.
            TrainingError: The training stopped before its end; the same call resumes it.
            SourceError: The teacher cannot be opened.
        """
        config = self._config(config, changes)
        if not config.recovers:
            config = config.replace(recovery=USUAL_LOSS)
        name = teacher.display_name if isinstance(teacher, Source) else None
        if name is None and teacher is not None:
            name = str(given_model(teacher, "teacher"))
        if name and config.recovery_teacher not in (None, name):
            raise RequestError(
                f"teacher={name!r} and recovery_teacher={config.recovery_teacher!r} name two models; give one"
            )
        config = config.replace(recovery_teacher=name or config.recovery_teacher)

        def job(folder: Path) -> Job:
            known = (teacher,) if isinstance(teacher, Source) else open_teachers(config)
            return recover_job(self.source, known[0] if known else None, config, folder, more_teachers=known[1:])

        result, temporary = run_into(save_directory, RECOVER, job, name=self._result_name, overwrite=overwrite)
        remove_with(result, temporary)
        return result

    def evaluate(
        self,
        config: IShrinkConfig | None = None,
        *,
        base: str | Path | Source | None = None,
        update_report: bool = True,
        **changes: Any,
    ) -> Report:
        """Measure perplexity, tasks and samples, and the divergence from a base where one is given.

        Args:
            config: Texts, tasks, lengths and seed; the defaults when None.
            base: The model to compare with, or None.
            update_report: Add the measurements to the report and card of the model's folder, where the model was cut
                from this base.
            **changes: Values that replace the config's, such as `eval_text="notes.txt"`.

        Returns:
            The report; its `base` is None where there is none.

        Raises:
            DataError: A text or task cannot be used.
            SourceError: The base cannot be opened.
        """
        config = self._config(config, changes).replace(evaluate=True, benchmark=False)
        return measure(self._open(config, may_offload=True), config, base, update=update_report)

    def benchmark(
        self,
        config: IShrinkConfig | None = None,
        *,
        base: str | Path | Source | None = None,
        update_report: bool = True,
        runtime: str = "pytorch",
        quantization: str | None = None,
        threads: int | None = None,
        **changes: Any,
    ) -> Report:
        """Time the model, in turn with its base where there is one, and measure loading, memory and operations.

        Args:
            config: Prompt lengths, batch sizes and rounds; the defaults when None, with prompts of 64 and 512 tokens.
            base: The model to compare with, or None.
            update_report: Add the measurements to the report and card of the model's folder, where the model was cut
                from this base.
            runtime: `pytorch`, or `llama.cpp`, which times GGUF exports in fresh processes.
            quantization: What is exported for llama.cpp; q8_0 by default.
            threads: Threads for llama.cpp; the physical cores by default.
            **changes: Values that replace the config's, such as `benchmark_rounds=21`.

        Returns:
            The report; its `base` is None where there is none.

        Raises:
            RequestError: The models have too few positions for what is to be timed, an option is not one of the
                runtime's, or llama.cpp is missing.
            SourceError: The base cannot be opened.
        """
        runtimes = RuntimeOptions(runtime=runtime, quantization=quantization, threads=threads)
        if runtimes.runtime == "llama.cpp":
            return report_in_llama_cpp(self.source, base, runtimes, config, update=update_report, **changes)
        if config is None:
            changes.setdefault("benchmark_prompt_length", BENCHMARK_LENGTHS)
        config = self._config(config, changes).replace(evaluate=False, benchmark=True)
        return measure(self._open(config), config, base, update=update_report)

    def export(self, output: str | Path, *, overwrite: bool = False, **options: Any) -> GgufExport | QuantizedExport:
        """Write the model as GGUF for llama.cpp, or with quantised linear layers for PyTorch, and compare it.

        Args:
            output: The GGUF file, or the folder; it appears whole or not at all.
            overwrite: Replace what is there.
            **options: The fields of `optimum_ishrink.edge.options.ExportOptions`, such as `quantization="q8_0"` or
                `format="safetensors"`.

        Returns:
            What was written, with its agreement with the checkpoint.

        Raises:
            RequestError: The quantisation does not fit, or a tool is missing.
            VerificationError: The export's predictions differ from the checkpoint's; nothing was left behind.
        """
        asked = ExportOptions(**options)
        if asked.is_mixed or asked.is_calibrated:
            config = self._config(None, {} if asked.calibration is None else {"calibration": asked.calibration})
            return export_chosen(self._open(config), config, asked, expanded(output), overwrite=overwrite)
        return export_source(self.source, asked, expanded(output), overwrite=overwrite)
