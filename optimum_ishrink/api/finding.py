"""Methods that find a model for a budget: search, the profile of a device, and advice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures.composite import check_alone
from ..options.option import options_of
from ..pipeline.estimate import Estimate, estimate_shrink
from ..pipeline.shape_alone import shape_alone
from ..search.options import AdviceOptions, ProfileOptions, SearchOptions
from ..search.profile import Profile
from ..search.profiling import profile_device, write_profile_script
from ..search.search import search
from ..search.ways import Way, find_ways
from .output_folder import expanded
from .speculating import Speculates

if TYPE_CHECKING:
    from ..checkpoint.session import Session
    from ..checkpoint.source import Source
    from ..configuration import IShrinkConfig
    from ..report.search import SearchRecord


class FindsModels(Speculates):
    """What `IShrinker` can do for a budget, and for speed that loses nothing."""

    source: Source

    if TYPE_CHECKING:

        def _config(self, config: IShrinkConfig | None, changes: dict[str, Any]) -> IShrinkConfig: ...

        def _open(self, config: IShrinkConfig) -> Session: ...

    def search(
        self,
        config: IShrinkConfig | None = None,
        *,
        save_directory: str | Path,
        overwrite: bool = False,
        **changes: Any,
    ) -> SearchRecord:
        """Search for the best model under a budget: pruning, vocabulary and bit widths together, on the runtime.

        Args:
            config: How to calibrate, choose and repair; the defaults when None. Its shape and target are not read.
            save_directory: The output folder, for the best checkpoint, on llama.cpp its GGUF file, `search.json` and a
                page. Every measurement is stored beside it, in `SAVE_DIRECTORY.partial`, and the same call resumes
                from there.
            overwrite: Replace what is in the output folder.
            **changes: Values that replace the config's, and the fields of
                `optimum_ishrink.search.options.SearchOptions`, such as `target="bytes=80MB"`.

        Returns:
            The record.

        Raises:
            RequestError: The request cannot be met; the message says what comes nearest.
        """
        values = {name: changes.pop(name) for name in options_of(SearchOptions) if name in changes}
        options = SearchOptions(**values)
        config = self._config(config, changes).replace(target=None, profile=None)
        return search(self._open(config), config, options, expanded(save_directory), overwrite=overwrite)

    def profile(
        self,
        config: IShrinkConfig | None = None,
        *,
        output: str | Path,
        overwrite: bool = False,
        **changes: Any,
    ) -> Profile:
        """Measure what the model's parts cost on this machine, for a search on another one.

        Args:
            config: Which tokens stay in smaller vocabularies; the defaults when None.
            output: The file.
            overwrite: Replace an existing file.
            **changes: Values that replace the config's, and the fields of
                `optimum_ishrink.search.options.ProfileOptions`, such as `threads=4`.

        Returns:
            The profile.

        Raises:
            RequestError: The request cannot be met.
            SourceError: The runtime cannot run a probe.
        """
        values = {name: changes.pop(name) for name in options_of(ProfileOptions) if name in changes}
        options, config = ProfileOptions(**values), self._config(config, changes)
        return profile_device(self._open(config), config, options, expanded(output), overwrite=overwrite)

    def profile_script(
        self,
        config: IShrinkConfig | None = None,
        *,
        output: str | Path,
        overwrite: bool = False,
        **changes: Any,
    ) -> None:
        """Write a program that measures another device: one file, for a Python without torch and this package.

        Args:
            config: Which tokens stay in smaller vocabularies; the defaults when None.
            output: The program, such as `phone.pyz`; `python3 phone.pyz` writes the profile there.
            overwrite: Replace an existing file.
            **changes: As of `profile`.

        Raises:
            RequestError: The request cannot be met.
        """
        values = {name: changes.pop(name) for name in options_of(ProfileOptions) if name in changes}
        options, config = ProfileOptions(**values), self._config(config, changes)
        write_profile_script(self._open(config), config, options, expanded(output), overwrite=overwrite)

    def advise(self, **options: Any) -> list[Way]:
        """Return ways to meet a budget, by config and sizes alone. Reads no weights.

        Args:
            **options: The fields of `optimum_ishrink.search.options.AdviceOptions`, such as `target="bytes=80MB"`.

        Raises:
            ShapeError: Nothing meets the budget; the message says what comes nearest.
            RequestError: An option is not allowed.
        """
        check_alone(
            self.source.raw_config,
            self.source.display_name,
            "advice",
            "plan it with a target instead, such as target='params=-15%'",
        )
        return find_ways(self.source.binding, AdviceOptions(**options), model=self.source.display_name)

    def estimate(self, config: IShrinkConfig | None = None, **changes: Any) -> Estimate:
        """Estimate the time, memory and disk of a shrink on this machine, whose speeds are measured in some seconds.

        Args:
            config: The options of the shrink; the defaults when None.
            **changes: Values that replace the config's.

        Returns:
            The estimate of each stage; no weights are read.

        Raises:
            RequestError: The request cannot be met.
        """
        config = self._config(config, changes)
        binding, shape, _ = shape_alone(None, config, lambda: self.source)
        return estimate_shrink(binding, shape, config, folder=Path.cwd(), in_memory=self.source.in_memory)
