from __future__ import annotations

import http.client
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.app.model_file import read_model_file
from optimum_ishrink.app.options import AppOptions, ServerOptions
from optimum_ishrink.app.server import SiteServer, open_server
from optimum_ishrink.app.site import write_site
from optimum_ishrink.errors import RequestError
from tests.helpers.app_site import PAGE_FILES, build_page, write_tiny

SAID: list[str] = []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("served")
    (place / "secret.txt").write_text("secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_ishrink.app.built_page.PAGE", build_page(place / "page"))
        model = read_model_file(write_tiny(place / "small.gguf"))
        write_site({"shrunk": model}, place / "site", AppOptions())
    (place / "site" / "link.txt").symlink_to(place / "secret.txt")
    return place / "site"


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[SiteServer]:
    made = open_server(site, ServerOptions(), SAID.append)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def ask(server: SiteServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        connection.putrequest(method, path)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        with closing(connection.getresponse()) as answer:
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_the_headers_that_threads_need(server: SiteServer) -> None:
    for path in ("/", "/main.js", "/nowhere"):
        _, headers, _ = ask(server, path)
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["server"].strip() == "ishrink"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/main.js?v=1", "text/javascript; charset=utf-8"),
        ("/engine/engine.wasm", "application/wasm"),
        ("/manifest.webmanifest", "application/manifest+json"),
        ("/models.json", "application/json"),
    ],
)
def test_content_types(path: str, kind: str, server: SiteServer, site: Path) -> None:
    status, headers, body = ask(server, path)
    name = path.split("?")[0].strip("/") or "index.html"
    assert (status, headers["content-type"], body) == (200, kind, (site / name).read_bytes())
    assert headers["content-length"] == str(len(body))
    assert headers["cache-control"] == "no-cache"


def test_parts_are_immutable(server: SiteServer, site: Path) -> None:
    part = next((site / "models").rglob("part-000"))
    status, headers, body = ask(server, f"/{part.relative_to(site).as_posix()}")
    assert (status, body) == (200, part.read_bytes())
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert headers["content-type"] == "application/octet-stream"


def test_a_page_that_the_browser_has_is_not_sent_again(server: SiteServer) -> None:
    _, headers, _ = ask(server, "/main.js")
    status, again, body = ask(server, "/main.js", If_None_Match=f'"other", {headers["etag"]}')
    assert (status, body, again["etag"]) == (304, b"", headers["etag"])
    assert ask(server, "/main.js", If_None_Match='"other"')[0] == 200


def test_head(server: SiteServer) -> None:
    status, headers, body = ask(server, "/main.js", "HEAD")
    assert (status, headers["content-length"], body) == (200, str(len(PAGE_FILES["main.js"])), b"")
    status, headers, body = ask(server, "/main.js", "HEAD", Range="bytes=0-2")
    assert (status, headers["content-length"], body) == (206, "3", b"")


@pytest.mark.parametrize(
    ("asked", "span"),
    [("bytes=0-0", (0, 0)), ("bytes=10-19", (10, 19)), ("bytes=4000-", (4000, 4095)), ("bytes=-5", (4091, 4095))],
)
def test_ranges(asked: str, span: tuple[int, int], server: SiteServer) -> None:
    data = PAGE_FILES["engine/engine.wasm"]
    status, headers, body = ask(server, "/engine/engine.wasm", Range=asked)
    assert (status, body) == (206, data[span[0] : span[1] + 1])
    assert headers["content-range"] == f"bytes {span[0]}-{span[1]}/{len(data)}"
    assert ask(server, "/engine/engine.wasm", Range="bytes=1-99999")[2] == data[1:]


@pytest.mark.parametrize("asked", ["bytes=-", "bytes=a-b", "bytes=5-2", "bytes=0-1,4-5", "lines=1-2", ""])
def test_ranges_that_are_none_give_the_whole_file(asked: str, server: SiteServer) -> None:
    status, _, body = ask(server, "/main.js", Range=asked)
    assert (status, body) == (200, PAGE_FILES["main.js"])


def test_a_range_of_another_version_gives_the_whole_file(server: SiteServer) -> None:
    assert ask(server, "/main.js", Range="bytes=0-1", If_Range='"other"')[0] == 200
    tag = ask(server, "/main.js")[1]["etag"]
    assert ask(server, "/main.js", Range="bytes=0-1", If_Range=tag)[0] == 206


@pytest.mark.parametrize("asked", ["bytes=5000-", "bytes=4096-5000", "bytes=-0"])
def test_ranges_beyond_the_end(asked: str, server: SiteServer) -> None:
    status, headers, body = ask(server, "/engine/engine.wasm", Range=asked)
    assert (status, headers["content-range"], body) == (416, "bytes */4096", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/engine/../../secret.txt",
        "/..\\secret.txt",
        "//etc/passwd",
        "/etc/passwd",
        "/link.txt",
        "/engine/",
        "/engine",
        "/models",
        "/_headers",
        "/README.md",
        "/index.html%00.txt",
        "/.",
        "*",
    ],
)
def test_nothing_but_the_sites_files(path: str, server: SiteServer) -> None:
    status, _, body = ask(server, path)
    assert (status, body) == (404, b"")


def test_it_says_which_pages_are_opened(server: SiteServer) -> None:
    SAID.clear()
    for path in ("/", "/main.js", "/measure.html"):
        ask(server, path, User_Agent="A phone\x1b[31m" + "x" * 300)
    ask(server, "/", "HEAD")
    ask(server, "/", Sec_Fetch_Dest="empty")
    assert [line.split(" (")[0] for line in SAID] == ["127.0.0.1 opened index.html", "127.0.0.1 opened measure.html"]
    assert all(line.isprintable() and len(line) < 170 for line in SAID)


def test_other_methods_are_refused(server: SiteServer) -> None:
    assert ask(server, "/", "POST")[0] == 501


def test_a_client_that_gives_up_ends_nothing(server: SiteServer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /engine/engine.wasm HTTP/1.1\r\nHo")
    server.handle_error(None, None)
    assert ask(server, "/")[0] == 200
    assert capsys.readouterr() == ("", "")


def test_a_site_that_is_written_again_meanwhile_is_not_served(server: SiteServer, site: Path) -> None:
    place = site / "measure.html"
    data, before = place.read_bytes(), place.stat()
    for change in (lambda: place.write_bytes(data[:5]), place.unlink):
        change()
        assert ask(server, "/measure.html")[0] == 503
        assert "measure.html is not what it was: the site was written again" in SAID[-1]
    place.write_bytes(data)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ask(server, "/measure.html")[0] == 200


def test_a_file_that_is_cut_while_it_is_sent_closes_the_connection(
    server: SiteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = server.files["/measure.html"]
    changed = {**server.files, "/measure.html": replace(file, nbytes=file.nbytes + 9)}
    monkeypatch.setattr(server, "files", changed)
    monkeypatch.setattr(type(file), "is_unchanged", True)
    with pytest.raises(http.client.IncompleteRead):
        ask(server, "/measure.html")


def test_ctrl_c_is_the_end(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = open_server(site, ServerOptions(), SAID.append)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(made, "serve_forever", interrupt)
    made.run()
    with pytest.raises(OSError):
        made.socket.getsockname()


def test_the_next_free_port(server: SiteServer, site: Path) -> None:
    made = open_server(site, ServerOptions(), SAID.append)
    assert made.port > server.port
    made.server_close()
    with pytest.raises(
        RequestError, match=rf"cannot listen on 127\.0\.0\.1 port {server.port}: Address already in use"
    ):
        open_server(site, ServerOptions(port=server.port), SAID.append)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"host": "no such host"}, "no such host is not an address of this machine; use 127.0.0.1, 0.0.0.0"),
        ({"host": "192.168..5"}, "is not an address of this machine; use 127.0.0.1, 0.0.0.0"),
        ({"host": "192.0.2.77"}, r"cannot listen on 192\.0\.2\.77 port 8000 to 8019: Cannot assign requested address"),
        ({"certificate": "nowhere.pem"}, r"cannot use the certificate nowhere\.pem \(\[Errno 2\] No such file"),
    ],
)
def test_servers_that_cannot_be(values: dict[str, Any], message: str, site: Path) -> None:
    with pytest.raises(RequestError, match=message):
        open_server(site, ServerOptions(**values), SAID.append)


def test_folders_that_are_no_site(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a site of `ishrink app`; name its folder with --output"):
        open_server(tmp_path, ServerOptions(), SAID.append)


def make_certificate(folder: Path, *more: str) -> tuple[str, str]:
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", key, "-out", certificate, "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", *(more or ("-nodes",))]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return certificate, key


def test_https(site: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    made = open_server(site, ServerOptions(certificate=certificate, key=key), SAID.append)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    context = ssl.create_default_context(cafile=certificate)
    with socket.create_connection(("127.0.0.1", made.port)) as idle:  # no handshake: it makes no other wait
        connection = http.client.HTTPSConnection("localhost", made.port, context=context, timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().read() == PAGE_FILES["index.html"]
        connection.close()
        idle.sendall(b"GET / HTTP/1.1\r\n\r\n")
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_key_with_a_password_is_not_asked_for(site: Path, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "-passout", "pass:secret")
    with pytest.raises(RequestError, match="name PEM files of a certificate and its private key without a password"):
        open_server(site, ServerOptions(certificate=certificate, key=key), SAID.append)
