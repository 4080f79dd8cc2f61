"""The result of a shrink or a recovery."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..app.site import Site
from ..chat.speaker import Speaker
from ..checkpoint.loading import load_model, load_tokenizer
from ..checkpoint.source import Source, open_source
from ..configuration import IShrinkConfig
from ..core.output import staged_folder
from ..edge.gguf_export import GgufExport
from ..edge.quantized_export import QuantizedExport
from ..report.plan import Plan
from ..report.report import Report
from ..report.run import Run
from .device_evidence import add_device_reports
from .push import PushToHub
from .talking import Talks

if TYPE_CHECKING:
    from .shrinker import IShrinker


class ShrinkResult(PushToHub, Talks):
    """A shrunk or recovered model: its folder, its plan and its numbers.

    Args:
        folder: The output folder.
        plan: What was removed; None for a recovered checkpoint whose folder does not say.
        report: What was measured.
        dtype: Dtype that `model` is loaded in.
        device: Device that `model` is loaded on.
        base: The unpruned model, or None where it is not known.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan | None,
        report: Report,
        dtype: torch.dtype,
        device: torch.device,
        base: Source | None = None,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.report = report
        self.base = base
        self._dtype = dtype
        self._device = device

    def _pushed_folder(self) -> Path:
        return self.folder

    @cached_property
    def model(self) -> Any:
        """The model, a plain `PreTrainedModel`, loaded from the folder when it is first needed."""
        return load_model(self.folder, self._dtype, self._device)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return load_tokenizer(self.folder)

    @cached_property
    def _talking(self) -> Speaker:
        return Speaker(self.model, self.tokenizer, self.folder.name, reuse=False)

    def _speaker(self) -> Speaker:
        return self._talking

    @property
    def shrinker(self) -> IShrinker:
        """A shrinker of the result, to shrink, recover, measure or export it further."""
        from .shrinker import IShrinker

        device = str(self._device)
        made = IShrinker(open_source(self.folder), dtype=str(self._dtype).removeprefix("torch."), device=device)
        made.owner = self  # a temporary folder exists as long as this result
        return made

    def recover(self, config: IShrinkConfig | None = None, **kwargs: Any) -> ShrinkResult:
        """Train the model, by default against the unpruned one.

        Args:
            config: The options; the defaults when None.
            **kwargs: What `IShrinker.recover` takes.

        Returns:
            The recovered model.
        """
        if "recovery_teacher" not in kwargs and (config is None or config.recovery_teacher is None):
            kwargs = {"teacher": self.base, **kwargs}
        return self.shrinker.recover(config, **kwargs)

    def evaluate(self, config: IShrinkConfig | None = None, **kwargs: Any) -> Report:
        """Measure quality, by default compared with the unpruned model.

        Args:
            config: The options; the defaults when None.
            **kwargs: What `IShrinker.evaluate` takes.

        Returns:
            The measurements; those against the unpruned model are in `report`, too.
        """
        return self._reload_report(self.shrinker.evaluate(config, **self._with_base(config, kwargs)))

    def benchmark(self, config: IShrinkConfig | None = None, **kwargs: Any) -> Report:
        """Time the model, by default in turn with the unpruned one.

        Args:
            config: The options; the defaults when None.
            **kwargs: What `IShrinker.benchmark` takes.

        Returns:
            The measurements; those against the unpruned model are in `report`, too.
        """
        return self._reload_report(self.shrinker.benchmark(config, **self._with_base(config, kwargs)))

    def _with_base(self, config: IShrinkConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Compare with the unpruned model, under the name that the plan gives it."""
        kwargs = {"base": self.base, **kwargs}
        named = "base_model" in kwargs or (config is not None and config.base_model is not None)
        if kwargs["base"] is self.base is not None and self.plan is not None and not named:
            kwargs["base_model"] = self.plan.model
        return kwargs

    def _reload_report(self, found: Report) -> Report:
        """Read the report again: measurements against the base were added to it."""
        self.report = Run.read(self.folder).report
        return found

    def export(self, output: str | Path, **kwargs: Any) -> GgufExport | QuantizedExport:
        """Write the model as GGUF, or quantised for PyTorch.

        Args:
            output: The GGUF file, or the folder.
            **kwargs: What `IShrinker.export` takes.

        Returns:
            What was written, with its agreement with the checkpoint.
        """
        return self.shrinker.export(output, **kwargs)

    def app(self, save_directory: str | Path, **kwargs: Any) -> Site:
        """Write a site that chats with the model and times it in a browser, by default beside the unpruned one.

        Args:
            save_directory: The site's folder.
            **kwargs: What `IShrinker.app` takes.

        Returns:
            The site.
        """
        return self.shrinker.app(save_directory, **{"base": self.base, **kwargs})

    def add_device_report(self, *paths: str | Path) -> Report:
        """Add what devices measured to the report and the card.

        Args:
            *paths: The files that the page's button 'Measure' saved.

        Returns:
            The report.

        Raises:
            SourceError: A file is no report of a device, or is damaged.
        """
        self.report = add_device_reports(self.folder, [Path(path) for path in paths])
        return self.report

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = False) -> Path:
        """Copy the whole output folder: checkpoint, card, config, plan and report.

        Args:
            save_directory: The new folder; it appears whole or not at all.
            overwrite: Replace what is there.

        Returns:
            The new folder.

        Raises:
            OutputError: It is not empty, or cannot be written.
        """
        target = Path(save_directory).expanduser()
        with staged_folder(target, overwrite=overwrite) as staging:
            shutil.copytree(self.folder, staging, dirs_exist_ok=True)
        return target

    def __repr__(self) -> str:
        share = "" if self.plan is None else f", {self.plan.removed_share:.2%} of the parameters removed"
        return f"ShrinkResult({str(self.folder)!r}{share})"
