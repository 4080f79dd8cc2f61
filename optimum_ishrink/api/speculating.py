"""`draft` of a shrinker: a model that drafts for this one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..options.option import options_of
from ..speculation.make_draft import make_draft
from ..speculation.options import DraftOptions
from .output_folder import expanded

if TYPE_CHECKING:
    from ..checkpoint.session import Session
    from ..configuration import IShrinkConfig
    from ..report.draft import DraftRecord


class Speculates:
    """What `IShrinker` can do for assisted generation."""

    if TYPE_CHECKING:

        def _config(self, config: IShrinkConfig | None, changes: dict[str, Any]) -> IShrinkConfig: ...

        def _open(self, config: IShrinkConfig) -> Session: ...

    def draft(
        self,
        config: IShrinkConfig | None = None,
        *,
        save_directory: str | Path | None = None,
        overwrite: bool = False,
        **changes: Any,
    ) -> DraftRecord:
        """Make a model that drafts for this one in assisted generation, or measure what could.

        Under greedy decoding the output stays this model's own, token by token; sampling keeps its distribution
        (Leviathan et al. 2023, arXiv:2211.17192). Several shapes are cut, the best expected ones recovered where that
        is asked, and timed with this model in turn; the fastest is written.

        Args:
            config: How to calibrate, choose, repair and recover; the defaults when None. Its shape and target are not
                read.
            save_directory: The output folder, for the fastest draft, `draft.json` and the card; with `early_exit` or
                `draft_model`, which make nothing, for `draft.json` alone, or None.
            overwrite: Replace what is in the output folder.
            **changes: Values that replace the config's, and the fields of
                `optimum_ishrink.speculation.options.DraftOptions`, such as `draft_layers=(5, 10)`.

        Returns:
            The record.

        Raises:
            RequestError: The request cannot be met; where no draft is as fast as the target, the message has the
                nearest.
            DataError: The prompts' text cannot be used.
        """
        values = {name: changes.pop(name) for name in options_of(DraftOptions) if name in changes}
        options = DraftOptions(**values)
        config = self._config(config, changes).replace(target=None, profile=None)
        output = None if save_directory is None else expanded(save_directory)
        return make_draft(self._open(config), config, options, output, overwrite=overwrite)
