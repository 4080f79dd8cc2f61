from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.checkpoint.loading import load_model, load_tokenizer
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge.agreement import (
    AgreementSettings,
    binned_divergence,
    measure_agreement,
    measure_checkpoints,
)
from optimum_ishrink.errors import VerificationError


def test_the_binned_divergence_is_exact_with_all_tokens_and_below_it_with_few() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = (torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    exact = (log_p.exp() * (log_p - log_q)).sum().item()
    order = log_q.argsort(descending=True).tolist()
    top = [(token, log_q[token].item()) for token in order]
    value, share = binned_divergence(log_p, top)
    assert value == pytest.approx(exact)
    assert share == pytest.approx(1)
    before = exact
    for count in (40, 20, 5, 1):
        value, share = binned_divergence(log_p, top[:count])
        assert 0 <= value <= before + 1e-12
        assert share == pytest.approx(log_p[order[:count]].exp().sum().item())
        before = value


def test_equal_predictions_diverge_by_nothing() -> None:
    log_p = torch.tensor([0.5, 0.5 - 1e-13, 1e-13], dtype=torch.float64).log()
    value, _ = binned_divergence(log_p, [(0, math.log(0.5)), (1, math.log(0.5))])
    assert abs(value) < 1e-9


def _echo(model: Any, tokenizer: Any) -> Any:
    """A runtime that predicts what transformers predicts; its tokenizer differs on every second line."""

    def run(request: Any) -> dict[str, Any]:
        top = []
        with torch.no_grad():
            for window in request["windows"]:
                logits = model(torch.tensor([window])).logits[0, -request["predicted"] :].double().log_softmax(-1)
                values, ids = logits.topk(request["candidates"])
                top.append([list(zip(i.tolist(), v.tolist(), strict=True)) for i, v in zip(ids, values, strict=True)])
        lines = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in request["lines"]]
        return {"top": top, "lines": [ids if i % 2 else [*ids, 0] for i, ids in enumerate(lines)]}

    return run


def test_a_runtime_with_equal_predictions_agrees(edge_folder: Path) -> None:
    model = load_model(edge_folder, torch.float32, torch.device("cpu"))
    tokenizer = load_tokenizer(edge_folder)
    settings = AgreementSettings(windows=2, length=16, predicted=5, candidates=50, lines=10)
    found = measure_agreement(
        model, tokenizer, Path("x.gguf"), threads=1, settings=settings, run=_echo(model, tokenizer)
    )
    assert abs(found.divergence.value) < 1e-9
    assert found.top1.value == 1
    assert (found.divergence.n, found.divergence.candidates) == (2, 50)
    assert 0 < found.coverage < 1
    assert (found.same_lines, found.lines) == (5, 10)


def test_a_checkpoint_agrees_with_itself(edge_folder: Path) -> None:
    source = open_source(edge_folder)

    def load() -> Any:
        return source.load_model(torch.float32, torch.device("cpu"))

    settings = AgreementSettings(windows=2, length=16, predicted=8)
    found = measure_checkpoints(load, load, source.load_tokenizer(), settings)
    assert abs(found.divergence.value) < 1e-6
    assert (found.top1.value, found.divergence.n, found.divergence.predicted) == (1, 2, 8)

    def broken() -> Any:
        model = load()
        model.get_input_embeddings().weight.data.fill_(float("nan"))
        return model

    with pytest.raises(VerificationError, match="are NaN or inf; nothing was written"):
        measure_checkpoints(load, broken, source.load_tokenizer(), settings)
