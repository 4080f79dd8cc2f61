"""Serving a site: the headers that threads need, ranges, and nothing but the site's files."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..core.json_files import read_json
from ..errors import RequestError
from .built_page import FACTS, security_policy
from .host_files import IMMUTABLE, REVALIDATE, page_headers
from .options import DEFAULT_PORT, ServerOptions
from .served_files import ServedFile, served_files

_CHUNK = 2**18

_TRIED = 20
"""Ports that are tried from the default one on."""

_IDLE_SECONDS = 60

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Range:
    """Bytes of a file, the last one included."""

    first: int
    last: int


class SiteServer(ThreadingHTTPServer):
    """The server of one site.

    Args:
        address: Address and port to listen on.
        family: `socket.AF_INET` or `AF_INET6`.
        files: The files by the path of their address.
        headers: The headers of every answer.
        context: What encrypts; None for plain http.
        say: Told of every page that is opened.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        address: tuple[str, int],
        family: socket.AddressFamily,
        files: Mapping[str, ServedFile],
        headers: Mapping[str, str],
        context: ssl.SSLContext | None,
        say: Say,
    ) -> None:
        self.address_family = family
        self.files, self.headers, self.say, self.encrypted = files, headers, say, context is not None
        super().__init__(address, _Answer)
        if context is not None:
            # The handshake is done by the thread of the connection: a slow client makes no other wait.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind without asking what the machine's name is, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a connection that a client gave up: phones do so all the time."""

    def run(self) -> None:
        """Answer until Ctrl-C, which is the way to end it."""
        try:
            self.serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            self.server_close()


class _Answer(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: SiteServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ishrink", ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Send a file, or a range of it."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Send the headers alone."""
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        # Only what was in the site when the server began has an address, so that no path leads out of it.
        file = self.server.files.get(unquote(urlsplit(self.path).path))
        if file is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        if not file.is_unchanged:
            self.server.say(f"{file.path.name} is not what it was: the site was written again; start the server again")
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        tag = f'"{file.tag}"'
        facts = {
            "Content-Type": file.kind,
            "ETag": tag,
            "Accept-Ranges": "bytes",
            "Cache-Control": IMMUTABLE if file.immutable else REVALIDATE,
        }
        if tag in re.split(r"\s*,\s*", self.headers.get("If-None-Match", "")):
            self._begin(HTTPStatus.NOT_MODIFIED, facts)
            return
        try:
            span = self._range(file, tag)
        except ValueError:
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{file.nbytes}"})
            return
        # The page's service worker fetches all pages, which nobody has opened.
        if file.is_page and body and self.headers.get("Sec-Fetch-Dest", "document") == "document":
            device = self.headers.get("User-Agent", "")
            self.server.say(f"{self.client_address[0]} opened {file.path.name} ({_printable(device)})")
        if span is None:
            self._begin(HTTPStatus.OK, {**facts, "Content-Length": str(file.nbytes)})
            span = _Range(0, file.nbytes - 1)
        else:
            facts["Content-Range"] = f"bytes {span.first}-{span.last}/{file.nbytes}"
            self._begin(HTTPStatus.PARTIAL_CONTENT, {**facts, "Content-Length": str(span.last - span.first + 1)})
        if body:
            self._send(file, span)

    def _range(self, file: ServedFile, tag: str) -> _Range | None:
        """Return the range that is asked for; None for the whole file.

        Raises:
            ValueError: The file has no such bytes.
        """
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        if found is None or not (found[1] or found[2]) or self.headers.get("If-Range", tag) != tag:
            return None
        if not found[1]:  # so many bytes at the end
            length = min(int(found[2]), file.nbytes)
            span = _Range(file.nbytes - length, file.nbytes - 1)
        else:
            last = int(found[2]) if found[2] else file.nbytes - 1
            if last < int(found[1]) and found[2]:
                return None
            span = _Range(int(found[1]), min(last, file.nbytes - 1))
        if span.first > span.last:
            raise ValueError(span)
        return span

    def _send(self, file: ServedFile, span: _Range) -> None:
        with file.path.open("rb") as opened:
            opened.seek(span.first)
            left = span.last - span.first + 1
            while left > 0 and (chunk := opened.read(min(_CHUNK, left))):
                self.wfile.write(chunk)
                left -= len(chunk)
        if left > 0:
            self.close_connection = True  # the file was cut in the meantime

    def _begin(self, status: HTTPStatus, facts: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**self.server.headers, **facts}.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: HTTPStatus, facts: Mapping[str, str] | None = None) -> None:
        self._begin(status, {"Content-Length": "0", "Cache-Control": "no-store", **(facts or {})})

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the server says which pages are opened."""


def open_server(site: Path, options: ServerOptions, say: Say) -> SiteServer:
    """Return the server of a site, which listens already.

    Args:
        site: The site's folder.
        options: Address, port and certificate.
        say: Told of every page that is opened.

    Raises:
        RequestError: The folder is not a site, the certificate cannot be used, or the address cannot be listened on.
    """
    files = served_files(site)
    facts = read_json(site / FACTS) if (site / FACTS).is_file() else {}
    headers = page_headers(security_policy(facts))
    context = _context(options)
    try:
        family, _, _, _, place = socket.getaddrinfo(options.host, 0, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise RequestError(
            f"{options.host} is not an address of this machine; use 127.0.0.1, 0.0.0.0, or one of its own"
        ) from None
    tried = range(DEFAULT_PORT, DEFAULT_PORT + _TRIED) if options.port is None else (options.port,)
    reason = ""
    for port in tried:
        try:
            return SiteServer((str(place[0]), port), family, files, headers, context, say)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
    asked = f"{options.host} port {tried[0]}" + (f" to {tried[-1]}" if len(tried) > 1 else "")
    raise RequestError(f"cannot listen on {asked}: {reason}; name another --port, or another --host")


def _context(options: ServerOptions) -> ssl.SSLContext | None:
    """Return what encrypts; None for plain http.

    Raises:
        RequestError: The certificate cannot be used.
    """
    if options.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: a key that is encrypted is refused instead of asked for on the terminal.
        context.load_cert_chain(options.certificate, options.key, password=b"")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = " ".join(str(error).split())
        raise RequestError(
            f"cannot use the certificate {options.certificate} ({reason}); name PEM files of a certificate and its "
            "private key without a password"
        ) from None
    return context


def _printable(text: str) -> str:
    """Return what a browser calls itself without characters that a terminal would obey."""
    return "".join(each for each in text[:120] if each.isprintable())
