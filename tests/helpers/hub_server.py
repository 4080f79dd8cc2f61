"""A small Hugging Face Hub in memory, for tests that publish and load with the real clients.

It answers what `create_repo`, `create_commit`, `upload_folder`, `update_repo_settings`, `snapshot_download`,
`from_pretrained` and `ModelCard.load` ask for: one branch (`main`), commits, large files over the basic LFS transfer.
There are no pull requests, tags or Xet storage. Where a test asks for it, it fails on purpose: `fail_next`,
`drop_next`, `cut_next`.

`huggingface_hub` reads `HF_ENDPOINT` when it is imported, so clients run in child processes:

    with HubServer() as hub:
        env = {**os.environ, **hub_environment(hub, tmp_path / "home")}
        subprocess.run([sys.executable, "-c", script], env=env, check=True)
        assert len(hub.repos["me/x"].commits) == 1
"""

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.helpers.hub_endpoints import Answer, HubEndpoints, HubError, Request

TOKEN = "hf_writer"
"""The token that `hub_environment` sets. Every token that is not listed as read-only may write."""


@dataclass
class _Fault:
    method: str
    path: re.Pattern[str]
    times: int
    status: int | None  # None: close the connection
    applied: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "Injected failure"
    cut: int | None = None  # close the connection after this many bytes of the body


class HubServer(HubEndpoints):
    """An HTTP server on 127.0.0.1 that behaves like the Hub; use it as a context manager.

    Args:
        read_only_tokens: Tokens that may read private repositories but get 403 on writes.
        unknown_tokens: Tokens that get 401 everywhere.

    Attributes:
        endpoint: Value for `HF_ENDPOINT`; set while the context is open.
        repos: Repositories by id. A data set `me/x` has the key `datasets/me/x`.
        requests: All requests in order of arrival, including those answered by an injected failure.
        lfs_objects: Contents of large files by their sha256.
        on_request: Called with each request before it is answered, for tests that change something just then.
    """

    def __init__(self, read_only_tokens: Iterable[str] = (), unknown_tokens: Iterable[str] = ()) -> None:
        """Make a server that does not listen yet."""
        super().__init__(read_only_tokens, unknown_tokens)
        self.on_request: Callable[[Request], None] = lambda request: None
        self.requests: list[Request] = []
        self._faults: list[_Fault] = []
        self._lock = threading.RLock()

    def __enter__(self) -> "HubServer":
        """Start to serve in a thread."""
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        # A short poll interval: shutdown() waits for one, and its default is half a second per test.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving; the state can still be read."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail_next(
        self,
        method: str,
        path_regex: str,
        status: int = 503,
        times: int = 1,
        headers: dict[str, str] | None = None,
        message: str = "Injected failure",
    ) -> None:
        """Answer the next matching requests with an error status, without doing what they ask.

        Args:
            method: HTTP method.
            path_regex: Searched for in the raw path and query.
            status: Status of the answer. The clients retry many calls on 429, 500, 502, 503 and 504, five times.
            times: How many requests fail.
            headers: More headers of the answer, such as `Retry-After`.
            message: What the answer says.
        """
        self._faults.append(
            _Fault(method, re.compile(path_regex), times, status, headers=headers or {}, message=message)
        )

    def drop_next(self, method: str, path_regex: str, times: int = 1, applied: bool = False) -> None:
        """Close the connection of the next matching requests without an answer.

        Args:
            method: HTTP method.
            path_regex: Searched for in the raw path and query.
            times: How many requests are dropped.
            applied: Do what the request asks first, so that only the answer is lost.
        """
        self._faults.append(_Fault(method, re.compile(path_regex), times, None, applied))

    def cut_next(self, method: str, path_regex: str, after: int, times: int = 1) -> None:
        """Close the connection of the next matching requests in the middle of their body.

        Args:
            method: HTTP method.
            path_regex: Searched for in the raw path and query.
            after: Bytes of the body that are read before.
            times: How many requests are cut.
        """
        self._faults.append(_Fault(method, re.compile(path_regex), times, None, cut=after))

    def _take_cut(self, request: Request) -> int | None:
        with self._lock:
            fault = self._take_fault(request.method, request.path, cut=True)
            if fault is not None:
                self.requests.append(request)
            return fault.cut if fault else None

    def _take_fault(self, method: str, path: str, cut: bool = False) -> _Fault | None:
        for fault in self._faults:
            matches = fault.method == method and fault.path.search(path)
            if matches and fault.times > 0 and (fault.cut is not None) == cut:
                fault.times -= 1
                return fault
        return None

    def _respond(self, request: Request, body: bytes) -> Answer | None:
        """Return the answer to one request, or None to close the connection."""
        # One request at a time: the state is small, and tests see it in a definite order.
        with self._lock:
            self.requests.append(request)
            self.on_request(request)
            fault = self._take_fault(request.method, request.path)
            if fault and fault.status is not None:
                return HubError(fault.status, fault.message, headers=fault.headers).answer
            if fault and not fault.applied:
                return None
            try:
                answer = self.dispatch(request, body)
            except HubError as error:
                answer = error.answer
            except Exception as error:  # a bug here, or an unexpected request: show it to the client
                answer = HubError(500, f"hub_server: {error!r}".replace("\n", " ")).answer
            return None if fault else answer


def hub_environment(server: HubServer, home: str | Path, token: str | None = TOKEN) -> dict[str, str]:
    """Return the environment variables with which a child process uses the server.

    Args:
        server: A running server.
        home: Folder for `HF_HOME`. Give each process a fresh one unless it is to share a cache.
        token: Value for `HF_TOKEN`; None for a client that is not logged in.

    Returns:
        Variables to put over those of the current process.
    """
    home = Path(home)
    return {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        # These take precedence over HF_HOME where the developer's shell sets them.
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_TOKEN": token or "",
        "HUGGING_FACE_HUB_TOKEN": "",
        # The Xet client has no plain fallback: it fails where there is no Xet storage.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # snapshot_download opens many connections at once; a full queue costs a second
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: they come from clients that closed their connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; together with keep-alive that costs 40 ms each
    timeout = 30  # ends the threads of idle connections
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the requests are recorded."""

    def _handle(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, self.path, headers)
        if (cut := self.server.hub._take_cut(request)) is not None:
            self.rfile.read(cut)
            self.close_connection = True
            return
        # The body is read in every other case: unread bytes would be parsed as the next request.
        body = self._read_body()
        answer = self.server.hub._respond(request, body)
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for key, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers, up to the empty line
            pass
        return b"".join(chunks)
