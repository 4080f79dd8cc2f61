"""The page: one self-contained HTML file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2

from ...errors import OutputError
from .overview import Overview
from .pareto import Plot
from .svg import draw


def render_page(overview: Overview, plots: Sequence[Plot], *, title: str) -> str:
    """Return the page's HTML.

    Args:
        overview: The measurements.
        plots: The plots.
        title: The page's title.
    """
    tables = [
        (name, [column for column in overview.columns if column.part == part])
        for part, name in (("quality", "Quality"), ("speed", "Speed"))
    ]
    return load_template("report.html").render(
        title=title,
        overview=overview,
        tables=tables,
        drawings=[draw(plot) for plot in plots if plot.points],
        optimal={plot.title: [point.label for point in plot.points if point.optimal] for plot in plots},
        params={model.label: model.params for model in overview.models},
    )


def load_template(name: str) -> jinja2.Template:
    """Return a template of this package; others can be included in it.

    Args:
        name: Its file's name.
    """

    def read(file: str) -> str:
        return resources.files(__package__).joinpath("templates").joinpath(file).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_page(text: str, path: Path, *, overwrite: bool = False) -> None:
    """Write a page atomically.

    Args:
        text: The HTML.
        path: The file.
        overwrite: Replace an existing file.

    Raises:
        OutputError: The file exists, or it cannot be written.
    """
    check_page(path, overwrite=overwrite)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.absolute().parent, prefix=".ishrink-", suffix=".html", delete=False
        ) as file:
            try:
                file.write(text)
                file.close()
                os.chmod(file.name, 0o666 & ~_umask())  # noqa: PTH101 - the temporary file is named by a string
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from None


def check_page(path: Path, *, overwrite: bool) -> None:
    """Check that a page can be written, before it is made.

    Raises:
        OutputError: It cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file, such as {path / 'report.html'}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists; name another file, or pass --overwrite")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.parent} is not a folder; create it first, or name another file")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
