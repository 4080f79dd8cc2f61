"""Options of the phone page: the site that is written, and its server."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import RequestError
from ..options.base import Options
from ..options.option import option

PAGE_QUANTIZATION = "q8_0"
"""What checkpoints are exported as: nearly lossless, and half the download of 16 bits."""

DEFAULT_PORT = 8000

LOOPBACK = "127.0.0.1"

_UNITS = {"kb": 10**3, "mb": 10**6, "kib": 2**10, "mib": 2**20}

_SMALLEST, _LARGEST = 10**5, 10**9


def parse_part_size(text: str) -> int:
    """Return the bytes of a part, from text such as `24MB`.

    Args:
        text: What was typed.

    Raises:
        RequestError: It has another form, or is too small or too large for a file of a site.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(kb|mb|kib|mib)", text.strip(), re.IGNORECASE)
    size = 0 if found is None else int(float(found[1]) * _UNITS[found[2].lower()])
    if not _SMALLEST <= size <= _LARGEST:
        raise RequestError(f"part_size {text!r} is not of the form 24MB or 16MiB, from 100KB to 1000MB")
    return size


@dataclass(frozen=True, kw_only=True, repr=False)
class AppOptions(Options):
    """What the site holds."""

    KIND = "option"

    quantization: str | None = option(
        None,
        metavar="NAME",
        help="what checkpoints are exported as, such as q4_0",
        default_help=f"that of the other GGUF file, or {PAGE_QUANTIZATION}",
    )
    verify: bool = option(
        True,
        help="do not compare an export's predictions with the checkpoint's",
        doc="Compare an export's predictions with the checkpoint's.",
    )
    part_size: str = option(
        "24MB",
        check=parse_part_size,
        metavar="SIZE",
        help="size of the pieces of model files: hosts of static sites limit files, the strictest to 25 MiB, and a "
        "download that breaks off goes on with the next piece",
    )
    probes: bool = option(
        False,
        help="add files of random weights, with which the page measures a cost profile of the device for `ishrink "
        "search`; needs a checkpoint as --base or --model",
    )
    title: str | None = option(None, metavar="TEXT", help="title of the site", default_help="the models' names")

    @property
    def part_bytes(self) -> int:
        """The size of a part in bytes."""
        return parse_part_size(self.part_size)


@dataclass(frozen=True, kw_only=True, repr=False)
class ServerOptions(Options):
    """How a site is served."""

    KIND = "option"

    port: int | None = option(
        None, le=65535, metavar="N", help="port to listen on", default_help=f"{DEFAULT_PORT}, or the next free one"
    )
    host: str = option(
        LOOPBACK,
        metavar="ADDRESS",
        help="address to listen on: 127.0.0.1 is reached from this machine alone, 0.0.0.0 from the local network",
    )
    certificate: str | None = option(
        None,
        metavar="FILE.pem",
        help="serve https with this certificate; without https, browsers on other machines run one thread and keep "
        "nothing for offline use",
    )
    key: str | None = option(
        None, metavar="FILE.pem", help="its private key", default_help="in the file of the certificate"
    )

    def check_together(self) -> None:
        """Check that a key belongs to a certificate.

        Raises:
            RequestError: It has none.
        """
        if self.key is not None and self.certificate is None:
            raise RequestError("--key is the private key of a certificate; name that, too, with --certificate")
