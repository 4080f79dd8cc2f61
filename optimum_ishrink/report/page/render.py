"""The page: one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2

from ...errors import OutputError
from .overview import Overview
from .pareto import Picture
from .svg import draw


def render_page(overview: Overview, found: Sequence[Picture], *, title: str) -> str:
    """Return the page's HTML.

    Args:
        overview: What was measured.
        found: The pictures.
        title: The page's title.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files(__package__).joinpath("templates/report.html").read_text(encoding="utf-8")
    tables = [
        (name, [column for column in overview.columns if column.part == part])
        for part, name in (("quality", "Quality"), ("speed", "Speed"))
    ]
    return environment.from_string(template).render(
        title=title,
        overview=overview,
        tables=tables,
        drawings=[draw(picture) for picture in found if picture.points],
        optimal={picture.title: [point.label for point in picture.points if point.optimal] for picture in found},
        params={model.label: model.params for model in overview.models},
    )


def write_page(text: str, path: Path, *, overwrite: bool = False) -> None:
    """Write a page; it appears whole or not at all.

    Args:
        text: The HTML.
        path: The file.
        overwrite: Replace a file that is there.

    Raises:
        OutputError: There is a file already, or it cannot be written.
    """
    check_page(path, overwrite=overwrite)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.absolute().parent, prefix=".ishrink-", suffix=".html", delete=False
        ) as file:
            try:
                file.write(text)
                file.close()
                os.chmod(file.name, 0o666 & ~_umask())  # noqa: PTH101 - of a name, as the file has
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from None


def check_page(path: Path, *, overwrite: bool) -> None:
    """Check that a page can be written, before there is one.

    Raises:
        OutputError: It cannot.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file, such as {path / 'report.html'}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; name another file, or pass --overwrite")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.parent} is not a folder; make it first, or name another file")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
