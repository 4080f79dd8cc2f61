"""The verb `app`: its flags, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..app.options import AppOptions, ServerOptions
from ..errors import RequestError
from .flags import add_options, given
from .requests import quiet_transformers, register_description
from .show import print_table, say

if TYPE_CHECKING:
    from ..app.site import Site
    from ..core.table import Row

EXAMPLE = """ishrink app --model small-q4_0.gguf --base base-q4_0.gguf --output site
  ishrink app --serve --host 0.0.0.0 --output site"""


def add_app_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `app`.

    Args:
        parser: The verb's parser.
    """
    group = parser.add_argument_group("models")
    group.add_argument("--model", metavar="M", help="GGUF file, or a folder or Hub id, which is exported first")
    group.add_argument("--base", metavar="M0", help="the same of the model to show beside it")
    group.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    group.add_argument("--architecture", metavar="FILE.json", help="description of another architecture")
    site = parser.add_argument_group("site")
    site.add_argument(
        "--output", metavar="SITE", required=True, help="folder of the site; it appears whole or not at all"
    )
    site.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    add_options(site, AppOptions)
    serving = parser.add_argument_group("serving")
    serving.add_argument(
        "--serve",
        action="store_true",
        help="serve the site until Ctrl-C; without --model, one that was written before",
    )
    add_options(serving, ServerOptions)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def app(args: argparse.Namespace) -> Any:
    """Write a site that chats with models and times them in a browser, and serve it.

    Args:
        args: Parsed arguments.
    """
    values, how = given(args, AppOptions), given(args, ServerOptions)
    options, serving = AppOptions(**values), ServerOptions(**how)
    if how and not args.serve:
        raise RequestError(f"--{next(iter(how))} says how the site is served; pass --serve, too")
    output = Path(args.output).expanduser()
    found: dict[str, Any] = {"output": str(output)}
    if args.model:
        site = _write(args, output, options)
        found = site.to_json()
        if not args.json:
            _show(site, served=args.serve)
    elif args.serve:
        unread = [*(name for name in ("base", "revision", "overwrite") if getattr(args, name)), *values]
        if unread:
            raise RequestError(
                f"--{unread[0].replace('_', '-')} belongs to writing a site: name its model with --model, or leave it "
                "out to serve the one that is there"
            )
    else:
        raise RequestError("name the model with --model, or pass --serve for a site that is there")
    if args.serve:
        _serve(output, serving)
    return found


def _write(args: argparse.Namespace, output: Path, options: AppOptions) -> Site:
    from ..api.app_site import make_app

    quiet_transformers()
    register_description(args)
    return make_app(args.model, args.base, output, options, overwrite=args.overwrite, revision=args.revision)


def _show(site: Site, *, served: bool) -> None:
    """Print what a site holds, and how to open it."""
    rows: list[Row] = []
    for role, file in site.models.items():
        parameters = f"{file.parameters / 1e6:,.1f} million"
        rows.append((role, file.name, file.quantization, parameters, f"{file.nbytes / 1e6:,.1f}"))
    print_table(site.title, ("", "model", "quantization", "parameters", "MB"), rows)
    for line in site.notes:
        say(line)
    say(f"Written to {site.folder}, {site.nbytes / 1e6:,.1f} MB: any static host can serve it")
    if not served:
        say(f"Serve it:  ishrink app --serve --output {site.folder}")


def _serve(output: Path, options: ServerOptions) -> None:
    from ..app.addresses import serving_lines
    from ..app.server import open_server

    server = open_server(output, options, say)
    for line in serving_lines(server):
        say(line)
    server.run()
    say("Ended.")
