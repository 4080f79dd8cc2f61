"""Messages of failed pushes, without any token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optimum_ishrink.errors import IShrinkError
from optimum_ishrink.hub.destination import check_destination
from optimum_ishrink.hub.failures import is_transient, reason
from optimum_ishrink.hub.push import push_folder
from tests.helpers.hub_server import HubServer
from tests.helpers.push_folder import SECRET

SILENT: dict[str, Callable[[HubServer], None]] = {
    "create": lambda hub: hub.fail_next("POST", "/repos/create", status=400, message=f"bad {SECRET}"),
    "retried": lambda hub: hub.fail_next("POST", "/commit/", status=503, times=99, message=f"busy {SECRET}"),
    "put": lambda hub: hub.fail_next("PUT", "/lfs-storage", status=403, times=99, message=f"refused {SECRET}"),
    "dropped": lambda hub: hub.drop_next("POST", "/commit/", times=99),
    "batch": lambda hub: hub.fail_next("POST", "/objects/batch", status=403, times=99, message=f"no {SECRET}"),
    "card": lambda hub: hub.fail_next("POST", "/validate-yaml", status=400, message=f"yaml {SECRET}"),
    "settings": lambda hub: hub.fail_next("PUT", "/settings", status=403, message=f"no {SECRET}"),
    "who": lambda hub: hub.fail_next("GET", "/whoami", status=503, times=99, message=f"who {SECRET}"),
}


@pytest.mark.parametrize("path", SILENT)
@pytest.mark.parametrize("given", ["flag", "environment"])
def test_no_token_in_any_failure(
    server: HubServer,
    folder: Path,
    path: str,
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET if given == "environment" else "")
    token = SECRET if given == "flag" else None
    SILENT[path](server)
    caplog.set_level("DEBUG")
    with pytest.raises(IShrinkError) as caught:
        if path == "who":
            check_destination("me/small", token=token)
        push_folder(folder, "me/small", token=token, private_until_complete=True)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("optimum"))
    out, error = capfd.readouterr()
    for text in (str(caught.value), repr(caught.value), out, error, ours):
        assert SECRET not in text
    assert "\n" not in str(caught.value)
    # No request body or path holds a token; only one header does, and never in requests to the storage.
    for request in server.requests:
        assert SECRET not in request.path
        assert all(SECRET not in value for key, value in request.headers.items() if key != "authorization")
        assert not (request.method == "PUT" and "lfs-storage" in request.path and "authorization" in request.headers)


@pytest.mark.parametrize("place", ["create_repo", "whoami"])
def test_a_bug_of_ours_is_not_hidden(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(f"huggingface_hub.HfApi.{place}", broken)
    monkeypatch.setattr("optimum_ishrink.hub.push._prepare", lambda *_: {})
    with pytest.raises(ZeroDivisionError):
        check_destination("me/x") if place == "whoami" else push_folder(folder, "me/x")


def test_a_failure_of_the_disk_is_not_transient() -> None:
    error = OSError(28, "No space left on device")
    assert not is_transient(error)
    assert reason(error) == "[Errno 28] No space left on device"
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError("with hf_AbCdEf0123456789 in\nit")) == "with hf_*** in it"
