from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink.checkpoint.loading import load_model, load_tokenizer
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge.agreement import (
    BEHIND_WINDOW,
    AgreementSettings,
    binned_divergence,
    measure_agreement,
    measure_checkpoints,
)
from optimum_ishrink.errors import NotFiniteError, VerificationError
from tests.helpers.beginning import beginning_tokenizer
from tests.helpers.tiny import save_tiny, tiny_config


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


def test_both_read_the_same_beginning(edge_folder: Path) -> None:
    """llama.cpp gets token ids and adds nothing to them."""
    model = load_model(edge_folder, torch.float32, torch.device("cpu"))
    tokenizer = beginning_tokenizer()
    echo, seen = _echo(model, tokenizer), []

    def run(request: Any) -> dict[str, Any]:
        seen.append(request)
        return echo(request)  # type: ignore[no-any-return]

    settings = AgreementSettings(windows=2, length=16, predicted=5, candidates=50, lines=10)
    found = measure_agreement(model, tokenizer, Path("x.gguf"), threads=1, settings=settings, run=run)
    assert [window[0] for window in seen[0]["windows"]] == [1, 1]
    assert {len(window) for window in seen[0]["windows"]} == {16}
    assert abs(found.divergence.value) < 1e-9
    assert found.divergence.settings["begins_with"] == "<s>"
    both = measure_checkpoints(lambda: model, lambda: model, tokenizer, settings)
    assert both.top1.settings["begins_with"] == "<s>"


@pytest.mark.parametrize(
    ("model_type", "changes", "length", "count"),
    [
        ("llama", {}, 64, 4),
        ("gemma2", {"sliding_window": 80}, 80 + BEHIND_WINDOW, 4),
        ("gemma2", {"sliding_window": 3}, 3 + BEHIND_WINDOW, 4),
        ("gemma3_text", {"sliding_window": 1500}, 1500 + BEHIND_WINDOW, 2),
        ("gemma2", {"sliding_window": 400, "max_position_embeddings": 512}, 512, 4),
        ("gemma2", {"sliding_window": 512, "max_position_embeddings": 512}, 64, 4),
        ("qwen2", {"sliding_window": 80}, 64, 4),
        # llama.cpp lets every layer of these see all tokens: up to there they are the same.
        ("mistral", {"sliding_window": 80}, 64, 4),
        ("mistral", {"sliding_window": 40}, 40, 4),
    ],
)
def test_windows_of_text_reach_behind_a_sliding_window(
    model_type: str, changes: dict[str, Any], length: int, count: int, tmp_path: Path
) -> None:
    values = {"max_position_embeddings": 2048, "num_hidden_layers": 2, **changes}
    folder = save_tiny(tmp_path / "tiny", tiny_config(model_type, **values))
    model, tokenizer = load_model(folder, torch.float32, torch.device("cpu")), load_tokenizer(folder)
    found = measure_agreement(model, tokenizer, Path("x.gguf"), threads=1, run=_echo(model, tokenizer))
    assert (found.divergence.settings["length"], found.divergence.n) == (length, count)
    assert abs(found.divergence.value) < 1e-6


def test_a_damaged_checkpoint_is_no_fault_of_its_export(edge_folder: Path) -> None:
    source = open_source(edge_folder)
    settings = AgreementSettings(windows=2, length=16, predicted=8)
    tokenizer = source.load_tokenizer()
    whole = source.load_model(torch.float32, torch.device("cpu"))
    damaged = source.load_model(torch.float32, torch.device("cpu"))
    with torch.no_grad():
        damaged.lm_head.weight[5] = math.nan
    message = "the checkpoint gives NaN on .*, first in lm_head, whose weights hold NaN"
    with pytest.raises(NotFiniteError, match=message):
        measure_checkpoints(lambda: damaged, lambda: whole, tokenizer, settings)
    how: dict[str, Any] = {"threads": 1, "settings": settings}
    with pytest.raises(NotFiniteError, match=message):
        measure_agreement(damaged, tokenizer, Path("none.gguf"), run=_echo(whole, tokenizer), **how)
    with pytest.raises(VerificationError, match=r"llama.cpp's predictions are NaN or inf; nothing was written"):
        measure_agreement(whole, tokenizer, Path("none.gguf"), run=_echo(damaged, tokenizer), **how)
