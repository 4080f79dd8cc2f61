"""The share of a device's peak: operations counted by arithmetic beside those that torch counts, and its record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from optimum_ishrink.architectures.operations import active_parameters, attention_operations
from optimum_ishrink.card.build import render_card
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.recovery import device_use
from optimum_ishrink.recovery.device_use import training_operations, with_device_use
from optimum_ishrink.recovery.trainable import add_lora, train_parameters, trained_parameters
from optimum_ishrink.report.page.overview import build_overview
from optimum_ishrink.report.page.reading import NamedReport
from tests.helpers.card_folder import make_plan, make_report
from tests.helpers.small_recovery import LAYERS, go, random_text, settings
from tests.helpers.tiny import save_tiny, tiny_config, tiny_model

TOKENS = (2, 16)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("trained", "tolerance"), [("full", 0.0), ("lora", 0.1), ("last:2", 0.1), ("norms", 0.1), ("head", 0.01)]
)
def test_operations_are_those_that_torch_counts(trained: str, tolerance: float, tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "model", tiny_config("llama")))
    options = settings(trained=trained, length=TOKENS[1])
    model = tiny_model(tiny_config("llama"))
    model.set_attn_implementation("sdpa")
    if trained == "lora":
        add_lora(model, options)
    else:
        train_parameters(model, options.parts, LAYERS)
    names = trained_parameters(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(TOKENS, dtype=torch.long), use_cache=False).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"].items()
    products = sum(count for of, count in counted if "attention" not in str(of) and "bmm" not in str(of))
    how = (names, LAYERS, sum(each.numel() for each in names.values()))
    found = training_operations(options, source, (), *how)
    below = {"full": 4, "lora": 4, "last:2": 2, "norms": 4, "head": 0}[trained] / 4
    attention = attention_operations(source.binding, TOKENS[1]) * (1 + 2 * below)
    assert found - attention == pytest.approx(products / (TOKENS[0] * TOKENS[1]), rel=tolerance)
    taught = training_operations(options, source, (source,), *how)
    forward = 2 * active_parameters(source.binding, source.binding.shape)
    assert taught - found == pytest.approx(forward + attention_operations(source.binding, TOKENS[1]))


def record(tmp_path: Path, seconds: float) -> Any:
    return replace(go(tmp_path, text=random_text(8)).record, seconds=seconds, tokens_per_second=50.0, processes=2)


def test_the_share_is_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(device_use, "matmul_rate", lambda *how: asked.append(how) or 1000.0)
    found = with_device_use(record(tmp_path, 10.0), 4.0, CPU, torch.bfloat16)
    assert (found.operations_per_token, found.device_peak, found.peak_share) == (4.0, 1000.0, 0.1)
    assert asked == [(CPU, torch.bfloat16)]


def test_a_short_training_measures_nothing(tmp_path: Path) -> None:
    short = record(tmp_path, 9.0)
    assert with_device_use(short, 4.0, CPU, torch.float32) is short
    assert short.peak_share is None


def test_a_full_device_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(message: str) -> Any:
        def run(*_: Any) -> float:
            raise RuntimeError(message)

        return run

    long = record(tmp_path, 20.0)
    monkeypatch.setattr(device_use, "matmul_rate", fail("CUDA out of memory."))
    assert with_device_use(long, 4.0, CPU, torch.float32) is long
    assert "no memory was left to measure the peak of this device" in capsys.readouterr().err
    monkeypatch.setattr(device_use, "matmul_rate", fail("no kernel"))
    with pytest.raises(RuntimeError, match="no kernel"):
        with_device_use(long, 4.0, CPU, torch.float32)


def test_card_and_page_say_it(tmp_path: Path) -> None:
    plain = record(tmp_path, 10.0)
    for share, said in ((0.384, True), (None, False)):
        report = replace(make_report(), recovery=replace(plain, peak_share=share))
        card = render_card(report, make_plan(), figures={})
        assert ("ran at 38% of the device's measured peak of matrix products" in card) is said
        (model, _) = build_overview([NamedReport("small", report, make_plan())]).models[::-1]
        assert (model.facts.get("recovery's use of the device") == "38% of its measured peak") is said
