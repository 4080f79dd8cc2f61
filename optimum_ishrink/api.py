"""IShrinker: the face of the library."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from . import pipeline
from .analysis.record import Analysis
from .analysis.request import AnalysisRequest
from .analysis.zero_out import analyze
from .checkpoint.source import Source, load_model, load_tokenizer, open_source
from .configuration import IShrinkConfig
from .core.json_files import read_json
from .core.output import staged_folder
from .errors import RequestError
from .hub.destination import check_destination
from .hub.push import push_folder
from .report.files import PLAN_FILE
from .report.plan import Plan
from .report.report import Report


class ShrinkResult:
    """A shrunk model: its folder, its plan and its numbers.

    Args:
        folder: The output folder.
        plan: What was removed.
        report: What was measured.
        dtype: Dtype that `model` is loaded in.
        device: Device that `model` is loaded on.
    """

    def __init__(self, folder: Path, plan: Plan, report: Report, dtype: torch.dtype, device: torch.device) -> None:
        self.folder = folder
        self.plan = plan
        self.report = report
        self._dtype = dtype
        self._device = device

    @cached_property
    def model(self) -> Any:
        """The shrunk model, a plain `PreTrainedModel`, loaded from the folder when it is first asked for."""
        return load_model(self.folder, self._dtype, self._device)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_tokenizer(self.folder)

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = False) -> Path:
        """Copy the whole output folder: checkpoint, card, config, plan and report.

        Args:
            save_directory: The new folder; it appears whole or not at all.
            overwrite: Replace what is there.

        Returns:
            The new folder.

        Raises:
            OutputError: It holds something already, or cannot be written.
        """
        target = Path(save_directory).expanduser()
        with staged_folder(target, overwrite=overwrite) as staging:
            shutil.copytree(self.folder, staging, dirs_exist_ok=True)
        return target

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        private_until_complete: bool = False,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the output folder as one commit.

        Args:
            repo_id: `user/name`.
            private: Keep the repository private; one that is public is made private first.
            private_until_complete: Make a new repository private, and public once its commit is complete.
            token: Hub token; the one that is logged in when None.
            revision: Branch to commit to.
            commit_message: Message of the commit.

        Returns:
            Address of the commit.

        Raises:
            RequestError: The request cannot be met; nothing was sent.
            PublishError: The upload failed; the folder is whole.
        """
        return push_folder(
            self.folder,
            repo_id,
            private=private,
            private_until_complete=private_until_complete,
            token=token,
            revision=revision,
            commit_message=commit_message,
        )

    def __repr__(self) -> str:
        return f"ShrinkResult({str(self.folder)!r}, {self.plan.removed_share:.2%} of the parameters removed)"


class IShrinker:
    """Shrinks one model, as often and in as many shapes as asked.

    Args:
        source: Where the weights come from.
        dtype: Default compute dtype of the runs: `auto`, `bfloat16` or `float32`.
        device: Default device of the runs: `auto`, `cpu` or `cuda`.
    """

    def __init__(self, source: Source, *, dtype: str = "auto", device: str = "auto") -> None:
        self.source = source
        self._defaults = {"dtype": dtype, "device": device}
        self._session: pipeline.Session | None = None

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
            pretrained_model_name_or_path: Hub id, folder of safetensors, or a loaded model.
            tokenizer: The tokenizer of a loaded model.
            revision: Branch, tag or commit on the Hub.
            dtype: Compute dtype: `auto` (bfloat16 where the hardware multiplies it), `bfloat16` or `float32`.
            device: `auto` (CUDA where there is one), `cpu` or `cuda`.
            token: Hub token; it is never stored.
            gguf_file: Name of a GGUF file in the folder or repository.

        Raises:
            SourceError: There is no usable checkpoint.
            ArchitectureError: The architecture is not supported.
        """
        source = open_source(
            pretrained_model_name_or_path, tokenizer=tokenizer, revision=revision, token=token, gguf_file=gguf_file
        )
        source.binding  # noqa: B018 - an unknown architecture is an error now, not after the first call
        names = {"dtype": str(dtype).removeprefix("torch."), "device": str(device)}
        IShrinkConfig(**names)
        return cls(source, **names)

    def _open(self, config: IShrinkConfig | None, changes: dict[str, Any]) -> pipeline.Session:
        config = (config or IShrinkConfig()).replace(**changes)
        # What was said of the model holds for every run that does not say otherwise.
        config = config.replace(
            **{name: value for name, value in self._defaults.items() if getattr(config, name) == "auto"}
        )
        session = pipeline.Session(self.source, config)
        last = self._session
        if last is not None and (last.dtype, last.device) == (session.dtype, session.device):
            session = pipeline.Session(self.source, config, model=last._model)
        self._session = session
        return session

    def plan(self, config: IShrinkConfig | None = None, **changes: Any) -> Plan:
        """Return what would be removed, and write nothing.

        Args:
            config: What to ask for; the defaults when None.
            **changes: Values that replace the config's.

        Raises:
            RequestError: The request cannot be met.
        """
        return pipeline.plan_cut(self._open(config, changes), measure=False).plan

    def analyze(
        self,
        config: IShrinkConfig | None = None,
        *,
        save_directory: str | Path | None = None,
        overwrite: bool = False,
        levels: str | Sequence[float] | None = None,
        analysis_samples: int | None = None,
        analysis_length: int | None = None,
        analysis_text: str | Sequence[str] | None = None,
        max_divergence: float | None = None,
        **changes: Any,
    ) -> Analysis:
        """Measure quality against sparsity, and what each layer is worth, before anything is cut.

        Attention, MLP neurons, layers and all of them are set to zero in memory, the lowest scored units first; and
        each layer's attention, MLP and whole block alone. Nothing is repaired, so a cut with compensation or
        fine-tuning does better.

        Args:
            config: The criteria, calibration, tasks, protected layers and seed; its shape and target are not read. The
                defaults when None.
            save_directory: The output folder, for `analysis.json` and figures. Every finished measurement is kept
                beside it, in `SAVE_DIRECTORY.partial`, and the same call goes on from there. Nothing is written
                without it.
            overwrite: Replace what is in the output folder.
            levels: Sparsities in percent, from 0 to 50: a list, or `"0,10,20"`. 0, 5, 10, ... 50 by default, as in the
                iShrink thesis.
            analysis_samples: Windows to measure on; 8 by default, since all levels share them and are compared.
            analysis_length: Tokens in each; 256 by default.
            analysis_text: Text sources to measure on; by default further windows of the calibration's sources, which
                no score was computed on.
            max_divergence: KL divergence in nats per token that the advice stays below; 0.5 by default, about half of
                which compensation takes away.
            **changes: Values that replace the config's, such as `importance="taylor"`.

        Returns:
            The analysis; `shrink(config, **analysis.changes)` follows its advice.

        Raises:
            RequestError: The request cannot be met.
        """
        asked = {
            "levels": levels,
            "samples": analysis_samples,
            "length": analysis_length,
            "text": analysis_text,
            "max_divergence": max_divergence,
        }
        request = AnalysisRequest(**{name: value for name, value in asked.items() if value is not None})  # type: ignore[arg-type]
        output = None if save_directory is None else Path(str(save_directory)).expanduser()
        return analyze(self._open(config, changes), request, output, overwrite=overwrite)

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
        **changes: Any,
    ) -> ShrinkResult:
        """Shrink the model: calibrate, plan, cut, verify, measure, write the card.

        Args:
            config: What to ask for; the defaults when None.
            save_directory: The output folder. Without it the result lives in a temporary folder, as long as the
                result.
            overwrite: Replace what is in the output folder.
            push_to_hub: Upload the result; that one may is checked before the work begins.
            repo_id: Where to; by default the output folder's name.
            private: Keep the repository private; one that is public is made private first.
            private_until_complete: Make a new repository private, and public once its commit is complete.
            token: Hub token; it is never stored.
            **changes: Values that replace the config's, such as `target="params=-15%"`.

        Returns:
            The result.

        Raises:
            RequestError: The request cannot be met; nothing was written.
            VerificationError: The written checkpoint was not what was planned; nothing was kept.
            PublishError: The upload failed; the output folder is whole.
        """
        if push_to_hub and repo_id is None and save_directory is None:
            raise RequestError("push_to_hub needs a repo_id, or a save_directory whose name it can take")
        if push_to_hub:
            check_destination(repo_id or Path(str(save_directory)).expanduser().name, token=token)
        session = self._open(config, changes)
        temporary = Path(tempfile.mkdtemp(prefix="ishrink-")) if save_directory is None else None
        if temporary is not None:
            folder = temporary / f"{self.source.display_name.split('/')[-1]}-ishrink"
        else:
            folder = Path(str(save_directory)).expanduser()
        try:
            report = pipeline.shrink(session, folder, overwrite=overwrite)
        except BaseException:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        plan = Plan.from_json(read_json(folder / PLAN_FILE))
        result = ShrinkResult(folder, plan, report, session.dtype, session.device)
        if push_to_hub:
            result.push_to_hub(
                repo_id or folder.name, private=private, private_until_complete=private_until_complete, token=token
            )
        # Not before the push: when that fails, the folder is all that there is, and it stays.
        if temporary is not None:
            weakref.finalize(result, shutil.rmtree, temporary, ignore_errors=True)
        return result
