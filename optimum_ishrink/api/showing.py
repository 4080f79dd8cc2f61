"""Methods that show a model to people: the phone page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..app.options import AppOptions
from ..app.site import Site
from .app_site import make_app

if TYPE_CHECKING:
    from ..checkpoint.source import Source
    from ..configuration import IShrinkConfig


class ShowsModels:
    """How `IShrinker` shows its model."""

    source: Source

    def app(
        self,
        save_directory: str | Path,
        *,
        base: str | Path | Source | None = None,
        overwrite: bool = False,
        config: IShrinkConfig | None = None,
        **options: Any,
    ) -> Site:
        """Write a site that chats with the model, beside its base where one is given, and times them in a browser.

        Args:
            save_directory: The site's folder; it appears whole or not at all. `site.serve()` serves it.
            base: The model to compare with: a GGUF file, a checkpoint folder, a Hub id, or None.
            overwrite: Replace what is in the folder.
            config: Which tokens stay in the smaller vocabularies of a cost profile; the defaults when None.
            **options: The fields of `optimum_ishrink.app.options.AppOptions`, such as `quantization="q4_0"`.

        Returns:
            The site.

        Raises:
            RequestError: The page is not built, or the request cannot be met.
            SourceError: A browser could not run a model.
            VerificationError: The export does not agree with the checkpoint; nothing was written.
        """
        asked = AppOptions(**options)
        return make_app(self.source, base, save_directory, asked, overwrite=overwrite, config=config)
