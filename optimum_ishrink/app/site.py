"""Writing a site: the page, its models in parts, and what hosts need. It appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.json_codec import to_plain
from ..core.json_files import read_json, write_json
from ..core.output import check_not_inside, check_output, staged_folder
from ..core.progress import note, progress_bar
from ..errors import OutputError
from .built_page import FACTS, find_page, security_policy
from .host_files import headers_file, space_readme
from .model_file import ModelFile
from .options import AppOptions, ServerOptions
from .parts import PartedFile, verify_parts, write_parts

MODELS_FILE = "models.json"
"""What the page reads: the site's models."""

PLAN = "probes/plan.json"

SCHEMA = 1

WriteProbes = Callable[[Path], None]
"""Writes the probes of a cost profile into a folder."""


@dataclass(frozen=True)
class Site:
    """A site that was written.

    Args:
        folder: Its folder.
        title: Its title.
        models: Its models by role: `shrunk`, and `base` where there is one.
        nbytes: Bytes of all its files.
        notes: What its reader should know, a line each.
    """

    folder: Path
    title: str
    models: Mapping[str, ModelFile]
    nbytes: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the site as a JSON object."""
        models = {
            role: {"name": file.name, "bytes": file.nbytes, **file.to_json()} for role, file in self.models.items()
        }
        return {"output": str(self.folder), "title": self.title, "bytes": self.nbytes, "models": models}

    def serve(self, **options: Any) -> None:
        """Serve the site until Ctrl-C.

        Args:
            **options: The fields of `optimum_ishrink.app.options.ServerOptions`, such as `host="0.0.0.0"`.

        Raises:
            RequestError: The certificate cannot be used, or the address cannot be listened on.
        """
        from .addresses import serving_lines
        from .server import open_server

        asked = ServerOptions(**options)
        server = open_server(self.folder, asked, note)
        for line in serving_lines(server):
            note(line)
        server.run()


def check_site(output: Path, overwrite: bool) -> None:
    """Check that the page is built and that a site can be written, before any long work.

    Args:
        output: The site's folder.
        overwrite: Replace what is in it.

    Raises:
        RequestError: The page is not built.
        OutputError: The folder cannot be written.
    """
    find_page()
    check_output(output, overwrite)


def write_site(
    models: Mapping[str, ModelFile],
    output: Path,
    options: AppOptions,
    *,
    overwrite: bool = False,
    write_probes: WriteProbes | None = None,
) -> Site:
    """Write a site.

    Args:
        models: The models by role: `shrunk`, and `base` where there is one.
        output: The site's folder.
        options: Its title, and the size of parts.
        overwrite: Replace what is in the folder.
        write_probes: Writes the probes of a cost profile; None for a site without them.

    Raises:
        RequestError: The page is not built.
        OutputError: The folder cannot be written, or has too little room.
        SourceError: A file changed in the meantime, or the built page is damaged.
        VerificationError: What was written does not read back.
    """
    page = find_page()
    check_output(output, overwrite)
    check_not_inside(output, [file.path for file in models.values()])
    by_path = {file.path.resolve(): file for file in models.values()}
    _check_room(output, page.nbytes + sum(file.nbytes for file in by_path.values()))
    title = options.title or " beside ".join(models[role].name for role in ("shrunk", "base") if role in models)
    with staged_folder(output, overwrite=overwrite) as site:
        page.copy(site)
        written: dict[Path, PartedFile] = {}
        with progress_bar("writing models", 2 * len(by_path)) as advance:
            for path, file in by_path.items():
                written[path] = write_parts(path, file.nbytes, site, options.part_bytes)
                advance(1)
            for parted in written.values():
                verify_parts(site, parted)
                advance(1)
        if write_probes is not None:
            (site / PLAN).parent.mkdir()
            write_probes((site / PLAN).parent)
        entries = [_entry(role, models[role], written) for role in ("shrunk", "base") if role in models]
        probes = None if write_probes is None else PLAN
        write_json(site / MODELS_FILE, {"schema": SCHEMA, "title": title, "models": entries, "probes": probes})
        policy = security_policy(read_json(site / FACTS))
        (site / "_headers").write_text(headers_file(policy), encoding="utf-8")
        (site / "README.md").write_text(space_readme(title), encoding="utf-8")
        nbytes = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    return Site(output, title, models, nbytes, _notes(models))


def _entry(role: str, file: ModelFile, written: Mapping[Path, PartedFile]) -> dict[str, Any]:
    parted = written[file.path.resolve()]
    return {
        "role": role,
        "name": file.name,
        "file": file.path.name,
        "bytes": file.nbytes,
        "sha256": parted.sha256,
        "parts": to_plain(parted.parts),
        **file.to_json(),
    }


def _notes(models: Mapping[str, ModelFile]) -> tuple[str, ...]:
    base, shrunk = models.get("base"), models["shrunk"]
    found = []
    if base is not None and base.template != shrunk.template:
        found.append(
            "the models have different chat templates, so that both read the same messages in different words; each "
            "gets its own"
        )
    if base is not None and base.path.resolve() == shrunk.path.resolve():
        found.append(
            "base and shrunk model are the same file: the page then measures how much a model differs from itself"
        )
    return tuple(found)


def _check_room(output: Path, needed: int) -> None:
    """Check that a site fits on its disk.

    Raises:
        OutputError: It does not.
    """
    place = output.resolve().parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OutputError(
            f"the site takes {needed / 1e6:,.0f} MB and {place} has {free / 1e6:,.0f} MB free; name a folder on "
            "another disk"
        )
