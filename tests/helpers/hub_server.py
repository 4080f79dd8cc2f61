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

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "me"
TOKEN = "hf_writer"
"""The token that `hub_environment` hands out. Every token that is not listed as read-only may write."""

ORGANISATIONS = ("team",)
"""The organisations that the user may write to."""

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".onnx", ".parquet")
LFS_THRESHOLD = 10 * 1024 * 1024


@dataclass(frozen=True)
class Commit:
    """One commit: all files of the repository as they are after it."""

    oid: str
    message: str
    files: dict[str, bytes]
    lfs_paths: frozenset[str] = frozenset()


# The initial commit that the Hub makes itself. It is kept out of `Repo.commits`, so that tests count only theirs.
_INITIAL_COMMIT = Commit(oid="0" * 40, message="initial commit", files={})


@dataclass
class Repo:
    """A repository: its visibility and its commits, oldest first."""

    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    gated: str | bool = False

    @property
    def head(self) -> Commit:
        """The newest commit; an empty one in a new repository."""
        return self.commits[-1] if self.commits else _INITIAL_COMMIT


class Request(NamedTuple):
    """A request as it came in. `path` is raw and includes the query; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class _Fault:
    method: str
    path: re.Pattern[str]
    times: int
    status: int | None  # None: close the connection
    applied: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "Injected failure"
    cut: int | None = None  # close the connection after so many bytes of the body


@dataclass(frozen=True)
class _Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any) -> "_Answer":
        return cls(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


class _HubError(Exception):
    """Turned into an error answer; the clients choose the exception that they raise by `X-Error-Code`."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **fields: str,
    ) -> None:
        super().__init__(message)
        extra = {"X-Error-Code": code} if code else {}
        all_headers = {"Content-Type": "application/json", "X-Error-Message": message, **extra, **(headers or {})}
        self.answer = _Answer(status, json.dumps({"error": message, **fields}).encode(), all_headers)


class HubServer:
    """An HTTP server on 127.0.0.1 that behaves like the Hub; use it as a context manager.

    Args:
        read_only_tokens: Tokens that may read private repositories but get 403 on writes.
        unknown_tokens: Tokens that get 401 everywhere.

    Attributes:
        endpoint: Value for `HF_ENDPOINT`; set while the context is open.
        repos: Repositories by id. A data set `me/x` has the key `datasets/me/x`.
        requests: All requests in the order they came, those answered by an injected failure included.
        lfs_objects: Contents of large files by their sha256.
        on_request: Called with each request before it is answered, for tests that change something just then.
    """

    def __init__(self, read_only_tokens: Iterable[str] = (), unknown_tokens: Iterable[str] = ()) -> None:
        """Make a server that does not listen yet."""
        self.read_only_tokens = frozenset(read_only_tokens)
        self.unknown_tokens = frozenset(unknown_tokens)
        self.on_request: Callable[[Request], None] = lambda request: None
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.lfs_objects: dict[str, bytes] = {}
        self.endpoint = ""
        self._granted_uploads: set[str] = set()
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
        """Stop serving; the state stays readable."""
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

    def _respond(self, request: Request, body: bytes) -> _Answer | None:
        """Return the answer to one request, or None to close the connection."""
        # One request at a time: the state is small, and tests see it in a definite order.
        with self._lock:
            self.requests.append(request)
            self.on_request(request)
            fault = self._take_fault(request.method, request.path)
            if fault and fault.status is not None:
                return _HubError(fault.status, fault.message, headers=fault.headers).answer
            if fault and not fault.applied:
                return None
            try:
                answer = self._dispatch(request, body)
            except _HubError as error:
                answer = error.answer
            except Exception as error:  # a bug here, or a request that nobody foresaw: show it to the client
                answer = _HubError(500, f"hub_server: {error!r}".replace("\n", " ")).answer
            return None if fault else answer

    def _dispatch(self, request: Request, body: bytes) -> _Answer:
        url = urlsplit(request.path)
        if self._token(request) in self.unknown_tokens:
            raise _HubError(401, "Invalid credentials in Authorization header")
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, name, writes in _ROUTES:
            match = pattern.fullmatch(url.path)
            if match is None or route_method != method:
                continue
            if writes:
                self._require_writer(request)
            groups = {key: unquote(value) if value else "" for key, value in match.groupdict().items()}
            answer: _Answer = getattr(self, name)(request, body, groups, parse_qs(url.query))
            return answer
        raise _HubError(404, f"No endpoint {request.method} {url.path}")

    def _token(self, request: Request) -> str | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" and token else None

    def _require_writer(self, request: Request) -> None:
        token = self._token(request)
        if token is None:
            raise _HubError(401, "Invalid username or password.")
        if token in self.read_only_tokens:
            raise _HubError(403, "You must use a write token to upload to a repository.")

    def _repo(self, request: Request, groups: dict[str, str]) -> tuple[str, Repo]:
        key = _repo_key(groups)
        repo = self.repos.get(key)
        # A private repository looks like a missing one to those who may not read it.
        if repo is None or (repo.private and self._token(request) is None):
            raise _HubError(404 if self._token(request) else 401, "Repository not found", "RepoNotFound")
        return key, repo

    def _commit(self, request: Request, groups: dict[str, str]) -> Commit:
        _, repo = self._repo(request, groups)
        rev = groups.get("rev") or "main"
        if rev == "main":
            return repo.head
        for commit in (_INITIAL_COMMIT, *repo.commits):
            if commit.oid == rev:
                return commit
        _revision_not_found(rev)

    # The endpoints. Each takes the request, its body, the named groups of its path and its query.

    def _whoami(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> _Answer:
        token = self._token(request)
        if token is None:
            raise _HubError(401, "Invalid username or password.")
        access = {"displayName": "test", "role": "read" if token in self.read_only_tokens else "write"}
        auth = {"type": "access_token", "accessToken": access}
        orgs = [{"name": name} for name in ORGANISATIONS]
        return _Answer.json({"type": "user", "name": USER, "fullname": USER, "orgs": orgs, "auth": auth})

    def _validate_yaml(
        self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]
    ) -> _Answer:
        return _Answer.json({"errors": [], "warnings": []})

    def _create(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> _Answer:
        wanted = json.loads(body)
        if wanted.get("organization") not in (None, USER, *ORGANISATIONS):
            raise _HubError(403, f"You don't have the rights to create a model under {wanted['organization']}")
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        key = f"datasets/{name}" if wanted.get("type") == "dataset" else name
        url = f"{self.endpoint}/{key}"
        if key in self.repos:
            # With exist_ok=True the client takes the address from the error.
            raise _HubError(409, f"You already created this repo: {name}", url=url)
        self.repos[key] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return _Answer.json({"url": url, "name": name, "id": name})

    def _settings(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> _Answer:
        _, repo = self._repo(request, groups)
        wanted = json.loads(body)
        if "visibility" in wanted:
            repo.private = wanted["visibility"] == "private"
        if "gated" in wanted:
            repo.gated = wanted["gated"]
        return _Answer.json({"private": repo.private, "gated": repo.gated})

    def _preupload(
        self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]
    ) -> _Answer:
        head = self._commit(request, groups)
        files = []
        for item in json.loads(body)["files"]:
            path = item["path"]
            lfs = path.endswith(LFS_SUFFIXES) or item["size"] > LFS_THRESHOLD
            # With the id of the file that is there, the client leaves unchanged files out of the commit.
            oid = _etag(head, path) if path in head.files else None
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _Answer.json({"files": files})

    def _lfs_batch(
        self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]
    ) -> _Answer:
        self._repo(request, groups)
        objects = []
        for item in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.lfs_objects:
                self._granted_uploads.add(item["oid"])
                entry["actions"] = {"upload": {"href": f"{self.endpoint}/lfs-storage/{item['oid']}"}}
            objects.append(entry)
        return _Answer.json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> _Answer:
        oid = groups["oid"]
        # The address is the permission, as with pre-signed addresses of a real storage: no token comes with it.
        if oid not in self._granted_uploads:
            raise _HubError(403, "This upload was not granted")
        if hashlib.sha256(body).hexdigest() != oid:
            raise _HubError(400, "The content does not match its sha256")
        self.lfs_objects[oid] = body
        return _Answer()

    def _make_commit(
        self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]
    ) -> _Answer:
        key, repo = self._repo(request, groups)
        if query.get("create_pr") == ["1"]:
            raise _HubError(400, "hub_server has no pull requests")
        if groups["rev"] != "main":
            _revision_not_found(groups["rev"])
        head = repo.head
        files, lfs_paths, message = dict(head.files), set(head.lfs_paths), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            path = value.get("path", "")
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head.oid):
                    raise _HubError(412, "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[path] = base64.b64decode(value["content"])
                lfs_paths.discard(path)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.lfs_objects:
                    raise _HubError(400, f"The LFS object of {path} was not uploaded")
                files[path] = self.lfs_objects[value["oid"]]
                lfs_paths.add(path)
            elif item["key"] in ("deletedFile", "deletedFolder"):
                gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
                if not gone:
                    raise _HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for name in gone:
                    del files[name]
                    lfs_paths.discard(name)
            else:
                raise _HubError(400, f"Unknown operation {item['key']}")
        oid = hashlib.sha1(head.oid.encode() + body).hexdigest()
        repo.commits.append(Commit(oid, message, files, frozenset(lfs_paths)))
        url = f"{self.endpoint}/{key}/commit/{oid}"
        return _Answer.json({"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None})

    def _info(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> _Answer:
        commit = self._commit(request, groups)
        key, repo = self._repo(request, groups)
        info = {"id": key.removeprefix("datasets/"), "sha": commit.oid, "private": repo.private, "tags": []}
        front = re.match(rb"---\n(.*?)\n---\n", commit.files.get("README.md", b""), re.DOTALL)
        info |= {"gated": repo.gated, "cardData": yaml.safe_load(front[1]) if front else None}
        return _Answer.json({**info, "siblings": [{"rfilename": path} for path in sorted(commit.files)]})

    def _tree(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> _Answer:
        commit = self._commit(request, groups)
        folder = groups["path"].strip("/")
        prefix = f"{folder}/" if folder else ""
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, content in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            # Every folder between the one asked for and the file is an entry of its own.
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                name = prefix + "/".join(parts[:depth])
                entries[name] = {"type": "directory", "path": name, "oid": _sha1(name.encode()), "size": 0}
            if recursive or len(parts) == 1:
                entry = {"type": "file", "path": path, "size": len(content), "oid": _sha1(content)}
                if path in commit.lfs_paths:
                    entry["lfs"] = {"oid": _etag(commit, path), "size": len(content), "pointerSize": 134}
                entries[path] = entry
        if folder and not entries:
            raise _HubError(404, f"{folder} does not exist", "EntryNotFound")
        return _Answer.json(list(entries.values()))

    def _resolve(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> _Answer:
        commit = self._commit(request, groups)
        path = groups["path"]
        if path not in commit.files:
            # The client remembers missing files by this commit.
            raise _HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        content = commit.files[path]
        headers = {
            "ETag": f'"{_etag(commit, path)}"',
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if wanted is None or not any(wanted.groups()):
            return _Answer(200, content, headers)
        size, (first, last) = len(content), wanted.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            raise _HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return _Answer(206, content[start:stop], headers)


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


def _repo_key(groups: dict[str, str]) -> str:
    return f"datasets/{groups['name']}" if groups["kind"].startswith("datasets") else groups["name"]


def _revision_not_found(rev: str) -> NoReturn:
    raise _HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")


def _sha1(content: bytes) -> str:
    """The id that git gives to a blob."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _etag(commit: Commit, path: str) -> str:
    content = commit.files[path]
    return hashlib.sha256(content).hexdigest() if path in commit.lfs_paths else _sha1(content)


_NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
_API = rf"/api/(?P<kind>models|datasets)/{_NAME}"
_WEB = rf"/(?P<kind>datasets/)?{_NAME}"
_REV = r"(?P<rev>[^/]+)"

# Method, path, method of HubServer, whether it needs a token that may write.
_ROUTES = [
    (method, re.compile(pattern), name, writes)
    for method, pattern, name, writes in [
        ("GET", r"/api/whoami-v2", "_whoami", False),
        ("POST", r"/api/validate-yaml", "_validate_yaml", False),
        ("POST", r"/api/repos/create", "_create", True),
        ("PUT", rf"{_API}/settings", "_settings", True),
        ("POST", rf"{_API}/preupload/{_REV}", "_preupload", True),
        ("POST", rf"{_API}/commit/{_REV}", "_make_commit", True),
        ("GET", rf"{_API}/tree/{_REV}(?P<path>/.*)?", "_tree", False),
        ("GET", rf"{_API}(?:/revision/{_REV})?", "_info", False),
        ("POST", rf"{_WEB}\.git/info/lfs/objects/batch", "_lfs_batch", True),
        ("PUT", r"/lfs-storage/(?P<oid>[0-9a-f]{64})", "_lfs_put", False),
        ("GET", rf"{_WEB}/resolve/{_REV}/(?P<path>.+)", "_resolve", False),
    ]
]


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # snapshot_download opens many connections at once; a full queue costs a second
    hub: HubServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: what comes here are clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; together with keep-alive that costs 40 ms each
    timeout = 30  # ends the threads of idle connections
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the requests are recorded."""

    def _handle(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, self.path, headers)
        if (cut := self.server.hub._take_cut(request)) is not None:
            self.rfile.read(cut)
            self.close_connection = True
            return
        # The body is read in every other case: what stays unread would be taken for the next request.
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
