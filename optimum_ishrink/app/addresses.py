"""Where a site that is served can be opened: on this machine, from a phone, and as a QR code."""

from __future__ import annotations

import ipaddress
import socket
from io import StringIO

from .server import SiteServer

QR_LIBRARY = "segno"

_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses for documentation: a socket that would send there has the address of the local network."""


def own_address(server: SiteServer) -> str:
    """Return the address on this machine.

    Args:
        server: The server.
    """
    listens = str(server.server_address[0])
    return _url(server, "localhost" if _is_any(listens) or _is_loopback(listens) else listens)


def network_address(server: SiteServer) -> str | None:
    """Return the address from the local network; None where it is not reached from there.

    Args:
        server: The server.
    """
    listens = str(server.server_address[0])
    if _is_loopback(listens):
        return None
    if not _is_any(listens):
        return _url(server, listens)
    with socket.socket(server.address_family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ELSEWHERE[socket.AddressFamily(server.address_family)], 9))  # sends nothing
        except OSError:  # there is no network
            return None
        return _url(server, str(probe.getsockname()[0]))


def qr_code(url: str) -> str | None:
    """Return a QR code for the terminal; None where the library is missing.

    Args:
        url: What it leads to.
    """
    try:
        import segno
    except ImportError:
        return None
    drawn = StringIO()
    segno.make(url, error="l", micro=False).terminal(out=drawn, compact=True)
    return drawn.getvalue()


def serving_lines(server: SiteServer) -> list[str]:
    """Return what is printed when a site is served.

    Args:
        server: The server.
    """
    lines = [f"On this machine:       {own_address(server)}"]
    network = network_address(server)
    if network is not None:
        lines.append(f"On the local network:  {network}")
        code = qr_code(network)
        lines.append(code if code is not None else f"For a QR code of it: pip install {QR_LIBRARY}")
        if not server.encrypted:
            lines.append(
                "Over plain http, browsers on other machines run one thread and keep nothing for offline use: pass "
                "--certificate and --key for https, or for Android over USB"
            )
    else:
        lines.append("From a phone: pass --host 0.0.0.0 for the local network, or for Android over USB")
    if network is None or not server.encrypted:
        port = server.port
        lines.append(
            f"  adb reverse tcp:{port} tcp:{port}   and open {_url(server, 'localhost')} on it (several threads, and "
            "offline use)"
        )
    return [*lines, "Ctrl-C ends it."]


def _url(server: SiteServer, host: str) -> str:
    scheme = "https" if server.encrypted else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}/"


def _is_any(address: str) -> bool:
    return ipaddress.ip_address(address).is_unspecified


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
