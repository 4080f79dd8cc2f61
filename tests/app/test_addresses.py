from __future__ import annotations

import socket
import sys
from typing import Any, cast

import pytest

from optimum_ishrink.app.addresses import network_address, own_address, qr_code, serving_lines
from optimum_ishrink.app.server import SiteServer


class Listening:
    """What addresses read of a server."""

    def __init__(self, address: str, *, encrypted: bool = False) -> None:
        self.server_address, self.port, self.encrypted = (address, 8001), 8001, encrypted
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET


def listening(*args: Any, **kwargs: Any) -> SiteServer:
    return cast(SiteServer, Listening(*args, **kwargs))


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe:
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def connect(self, address: tuple[str, int]) -> None:
            assert address[0] in ("192.0.2.1", "2001:db8::1")

        def getsockname(self) -> tuple[str, int]:
            return "192.168.1.5", 1

    monkeypatch.setattr("optimum_ishrink.app.addresses.socket.socket", Probe)


@pytest.mark.parametrize(
    ("address", "own", "elsewhere"),
    [
        ("127.0.0.1", "http://localhost:8001/", None),
        ("::1", "http://localhost:8001/", None),
        ("0.0.0.0", "http://localhost:8001/", "http://192.168.1.5:8001/"),
        ("10.0.0.7", "http://10.0.0.7:8001/", "http://10.0.0.7:8001/"),
        ("fd00::7", "http://[fd00::7]:8001/", "http://[fd00::7]:8001/"),
    ],
)
def test_addresses(address: str, own: str, elsewhere: str | None) -> None:
    assert (own_address(listening(address)), network_address(listening(address))) == (own, elsewhere)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("optimum_ishrink.app.addresses.socket.socket.connect", unreachable)
    assert network_address(listening("0.0.0.0")) is None


def test_what_is_printed_on_the_loopback() -> None:
    text = "\n".join(serving_lines(listening("127.0.0.1")))
    assert "http://localhost:8001/" in text and "--host 0.0.0.0" in text
    assert "adb reverse tcp:8001 tcp:8001" in text
    assert "Over plain http" not in text


def test_what_is_printed_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    text = "\n".join(serving_lines(listening("0.0.0.0")))
    assert "http://192.168.1.5:8001/" in text
    assert "pip install segno" in text
    assert "Over plain http, browsers on other machines run one thread" in text and "adb reverse" in text
    text = "\n".join(serving_lines(listening("0.0.0.0", encrypted=True)))
    assert "https://192.168.1.5:8001/" in text
    assert "plain http" not in text and "adb" not in text


def test_the_code() -> None:
    pytest.importorskip("segno")
    code = qr_code("http://192.168.1.5:8000/")
    assert code is not None and code.count("\n") > 10
    assert "pip install" not in "\n".join(serving_lines(listening("0.0.0.0")))
