"""The state of the test Hub and its endpoints: repositories, commits and large files."""

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "me"
ORGANISATIONS = ("team",)
"""The organisations that the user can write to."""

LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".onnx", ".parquet")
LFS_THRESHOLD = 10 * 1024 * 1024


@dataclass(frozen=True)
class Commit:
    """One commit: all files of the repository as they are after it."""

    oid: str
    message: str
    files: dict[str, bytes]
    lfs_paths: frozenset[str] = frozenset()


# The initial commit that the Hub makes itself. It is not in `Repo.commits`, so that tests count only their commits.
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
    """A request as received. `path` is raw and includes the query; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any) -> "Answer":
        return cls(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


class HubError(Exception):
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
        self.answer = Answer(status, json.dumps({"error": message, **fields}).encode(), all_headers)


class HubEndpoints:
    """The state of the Hub and its endpoints, without the HTTP server around them; see `HubServer`."""

    def __init__(self, read_only_tokens: Iterable[str] = (), unknown_tokens: Iterable[str] = ()) -> None:
        """Make a Hub without repositories."""
        self.read_only_tokens = frozenset(read_only_tokens)
        self.unknown_tokens = frozenset(unknown_tokens)
        self.repos: dict[str, Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.endpoint = ""
        self._granted_uploads: set[str] = set()

    def dispatch(self, request: Request, body: bytes) -> Answer:
        url = urlsplit(request.path)
        if self._token(request) in self.unknown_tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, name, writes in _ROUTES:
            match = pattern.fullmatch(url.path)
            if match is None or route_method != method:
                continue
            if writes:
                self._require_writer(request)
            groups = {key: unquote(value) if value else "" for key, value in match.groupdict().items()}
            answer: Answer = getattr(self, name)(request, body, groups, parse_qs(url.query))
            return answer
        raise HubError(404, f"No endpoint {request.method} {url.path}")

    def _token(self, request: Request) -> str | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" and token else None

    def _require_writer(self, request: Request) -> None:
        token = self._token(request)
        if token is None:
            raise HubError(401, "Invalid username or password.")
        if token in self.read_only_tokens:
            raise HubError(403, "You must use a write token to upload to a repository.")

    def _repo(self, request: Request, groups: dict[str, str]) -> tuple[str, Repo]:
        key = _repo_key(groups)
        repo = self.repos.get(key)
        # A private repository looks like a missing one to users who cannot read it.
        if repo is None or (repo.private and self._token(request) is None):
            raise HubError(404 if self._token(request) else 401, "Repository not found", "RepoNotFound")
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

    def _whoami(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        token = self._token(request)
        if token is None:
            raise HubError(401, "Invalid username or password.")
        access = {"displayName": "test", "role": "read" if token in self.read_only_tokens else "write"}
        auth = {"type": "access_token", "accessToken": access}
        orgs = [{"name": name} for name in ORGANISATIONS]
        return Answer.json({"type": "user", "name": USER, "fullname": USER, "orgs": orgs, "auth": auth})

    def _validate_yaml(
        self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]
    ) -> Answer:
        return Answer.json({"errors": [], "warnings": []})

    def _create(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        asked = json.loads(body)
        if asked.get("organization") not in (None, USER, *ORGANISATIONS):
            raise HubError(403, f"You don't have the rights to create a model under {asked['organization']}")
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        key = f"datasets/{name}" if asked.get("type") == "dataset" else name
        url = f"{self.endpoint}/{key}"
        if key in self.repos:
            # With exist_ok=True the client takes the address from the error.
            raise HubError(409, f"You already created this repo: {name}", url=url)
        self.repos[key] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        return Answer.json({"url": url, "name": name, "id": name})

    def _settings(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        _, repo = self._repo(request, groups)
        asked = json.loads(body)
        if "visibility" in asked:
            repo.private = asked["visibility"] == "private"
        if "gated" in asked:
            repo.gated = asked["gated"]
        return Answer.json({"private": repo.private, "gated": repo.gated})

    def _preupload(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        head = self._commit(request, groups)
        files = []
        for item in json.loads(body)["files"]:
            path = item["path"]
            lfs = path.endswith(LFS_SUFFIXES) or item["size"] > LFS_THRESHOLD
            # With the id of the file on the Hub, the client leaves unchanged files out of the commit.
            oid = _etag(head, path) if path in head.files else None
            mode = "lfs" if lfs else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return Answer.json({"files": files})

    def _lfs_batch(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        self._repo(request, groups)
        objects = []
        for item in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.lfs_objects:
                self._granted_uploads.add(item["oid"])
                entry["actions"] = {"upload": {"href": f"{self.endpoint}/lfs-storage/{item['oid']}"}}
            objects.append(entry)
        return Answer.json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        oid = groups["oid"]
        # The URL is the permission, as with pre-signed URLs of a real storage: no token is sent with it.
        if oid not in self._granted_uploads:
            raise HubError(403, "This upload was not granted")
        if hashlib.sha256(body).hexdigest() != oid:
            raise HubError(400, "The content does not match its sha256")
        self.lfs_objects[oid] = body
        return Answer()

    def _make_commit(
        self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]
    ) -> Answer:
        key, repo = self._repo(request, groups)
        if query.get("create_pr") == ["1"]:
            raise HubError(400, "hub_server has no pull requests")
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
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif item["key"] == "file":
                files[path] = base64.b64decode(value["content"])
                lfs_paths.discard(path)
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.lfs_objects:
                    raise HubError(400, f"The LFS object of {path} was not uploaded")
                files[path] = self.lfs_objects[value["oid"]]
                lfs_paths.add(path)
            elif item["key"] in ("deletedFile", "deletedFolder"):
                deleted = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
                if not deleted:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                for name in deleted:
                    del files[name]
                    lfs_paths.discard(name)
            else:
                raise HubError(400, f"Unknown operation {item['key']}")
        oid = hashlib.sha1(head.oid.encode() + body).hexdigest()
        repo.commits.append(Commit(oid, message, files, frozenset(lfs_paths)))
        url = f"{self.endpoint}/{key}/commit/{oid}"
        return Answer.json({"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": None})

    def _info(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        commit = self._commit(request, groups)
        key, repo = self._repo(request, groups)
        info = {"id": key.removeprefix("datasets/"), "sha": commit.oid, "private": repo.private, "tags": []}
        front = re.match(rb"---\n(.*?)\n---\n", commit.files.get("README.md", b""), re.DOTALL)
        info |= {"gated": repo.gated, "cardData": yaml.safe_load(front[1]) if front else None}
        return Answer.json({**info, "siblings": [{"rfilename": path} for path in sorted(commit.files)]})

    def _tree(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        commit = self._commit(request, groups)
        folder = groups["path"].strip("/")
        prefix = f"{folder}/" if folder else ""
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, content in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            # Every folder between the requested one and the file is a separate entry.
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
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        return Answer.json(list(entries.values()))

    def _resolve(self, request: Request, body: bytes, groups: dict[str, str], query: dict[str, list[str]]) -> Answer:
        commit = self._commit(request, groups)
        path = groups["path"]
        if path not in commit.files:
            # The client remembers missing files by this commit.
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        content = commit.files[path]
        headers = {
            "ETag": f'"{_etag(commit, path)}"',
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        interval = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if interval is None or not any(interval.groups()):
            return Answer(200, content, headers)
        size, (first, last) = len(content), interval.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return Answer(206, content[start:stop], headers)


def _repo_key(groups: dict[str, str]) -> str:
    return f"datasets/{groups['name']}" if groups["kind"].startswith("datasets") else groups["name"]


def _revision_not_found(rev: str) -> NoReturn:
    raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")


def _sha1(content: bytes) -> str:
    """The git object id of a blob."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _etag(commit: Commit, path: str) -> str:
    content = commit.files[path]
    return hashlib.sha256(content).hexdigest() if path in commit.lfs_paths else _sha1(content)


_NAME = r"(?P<name>[^/]+(?:/[^/]+)?)"
_API = rf"/api/(?P<kind>models|datasets)/{_NAME}"
_WEB = rf"/(?P<kind>datasets/)?{_NAME}"
_REV = r"(?P<rev>[^/]+)"

# Method, path, method of HubServer, whether it needs a token that can write.
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
