"""The head in chunks: how large they are."""

from __future__ import annotations

import pytest

from optimum_ishrink.modeling import head
from tests.helpers.tiny import tiny_config, tiny_model


def test_chunks_are_as_large_as_a_device_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tiny_config("llama"))
    assert head.logits_at_once(model.device) == head.CHUNK
    assert head.Head(model).rows == head.CHUNK // 300
    assert head.Head(model, 1000).rows == 3
    assert head.Head(model, 1).rows == 1
    monkeypatch.setattr(head, "is_measured", lambda device: True)
    for free, expected in ((10**6, head.CHUNK), (640 * 2**24, 2**24), (10**15, head.MOST)):
        monkeypatch.setattr(head, "free_bytes", lambda device, free=free: free)
        assert head.logits_at_once(model.device) == expected
