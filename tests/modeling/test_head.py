"""The head in chunks: how large they are, and the blocks within them."""

from __future__ import annotations

import pytest
import torch

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


def test_a_chunk_is_compared_in_blocks_and_once_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(11, 4, generator=generator), torch.randn(5, 4, generator=generator)
    seen: list[slice] = []

    def of_chunk(logits: torch.Tensor, part: slice) -> torch.Tensor:
        seen.append(part)
        scale = torch.arange(11.0)[part, None]
        return torch.stack([(logits.tanh() * scale).sum(), logits.detach().sum()])

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        seen.clear()
        leaf = hidden.clone().requires_grad_()
        sums = head.chunked_sum(leaf, lambda rows: rows @ weight.T, of_chunk, rows=4, head_trains=False)
        return sums, torch.autograd.grad(sums[0], leaf)[0]

    whole = run()
    assert seen == [slice(0, 4), slice(4, 8), slice(8, 11)]
    monkeypatch.setattr(head, "BLOCK", 3 * 5)
    blocks = run()
    assert seen == [slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 8), slice(8, 11)]
    torch.testing.assert_close(blocks, whole)
    monkeypatch.setattr(head, "is_measured", lambda device: True)
    run()
    assert len(seen) == 3
