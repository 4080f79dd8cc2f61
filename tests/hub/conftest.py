from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars

from tests.helpers.hub_server import HubServer
from tests.helpers.push_folder import CARD, SECRET


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waiting times in seconds; the test does not wait."""
    seconds: list[float] = []
    monkeypatch.setattr("optimum_ishrink.hub.retries.sleep", seconds.append)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return seconds


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[HubServer]:
    with HubServer(read_only_tokens={"hf_readonly"}, unknown_tokens={"hf_unknown"}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        disable_progress_bars()  # standard error holds only our own lines
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    (path / "figures").mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "README.md").write_text(CARD)
    (path / "figures" / "speed.png").write_bytes(bytes(range(256)))
    for number in (1, 2, 3):
        (path / f"model-{number}.safetensors").write_bytes(bytes([number]) * 300_000)
    return path
