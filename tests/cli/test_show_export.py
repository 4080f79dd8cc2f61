from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.cli.show import print_table
from optimum_ishrink.cli.show_export import show_export, show_llama_cpp
from optimum_ishrink.edge.agreement import Agreement, CheckpointAgreement
from optimum_ishrink.edge.gguf_export import GgufExport
from optimum_ishrink.edge.llama_cpp import LlamaCppBenchmark
from optimum_ishrink.edge.quantized_export import QuantizedExport
from optimum_ishrink.edge.torch_quantizations import TORCH_QUANTIZATIONS
from optimum_ishrink.report.measurement import Measurement, median_measurement
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.records import make_environment

DIVERGENCE = Measurement("kl_divergence", "text", 0.0123, 0.001, 4, {"predicted": 32, "candidates": 1000})
TOP1 = Measurement("top1_agreement", "text", 0.961, 0.01, 4, {"predicted": 32, "candidates": 1000})


def test_a_gguf_export(capsys: pytest.CaptureFixture[str]) -> None:
    agreement = Agreement(DIVERGENCE, TOP1, 0.98, 99, 100)
    row = ("4 x down_proj", "288", "q4_k", "q5_0", "10 (+22%)", "256 or 512")
    show_export(GgufExport(Path("a.gguf"), "tiny", 1000, 750, "q4_k_m", "llama", agreement, (row,)))
    out = capsys.readouterr().out
    for words in (
        "tiny as q4_k_m",
        "750 bytes, 6.00 bits a parameter",
        "0.01230 ± 0.00100 nats/token; its 1,000 most likely tokens, all others as one",
        "4 windows x 32 predictions of text, in float32",
        "99 of 100 lines split as the checkpoint's does",
        "Rows that do not fit q4_k_m",
        "10 (+22%)",
        "Written to a.gguf\n",
        "ishrink benchmark --runtime llama.cpp --model a.gguf --base BASE.gguf\n",
    ):
        assert words in out
    show_export(GgufExport(Path("a.gguf"), "tiny", 1000, 750, "f16", "llama", None))
    out = capsys.readouterr().out
    assert "KL divergence" not in out and "do not fit" not in out


def test_a_quantised_export(capsys: pytest.CaptureFixture[str]) -> None:
    show_export(
        QuantizedExport(
            path=Path("somewhere/out"),
            model="tiny",
            quantization=TORCH_QUANTIZATIONS["int4"],
            group_size=32,
            params=1000,
            quantized_params=600,
            layers_in_16_bits=(1, 3),
            has_experts=True,
            nbytes=1100,
            nbytes_16_bit=2000,
            agreement=CheckpointAgreement(DIVERGENCE, TOP1),
        )
    )
    out = capsys.readouterr().out
    for words in (
        "tiny as int4",
        "600 (60.0%): weights in int4, a scale for each group of 32",
        "norms, routers, experts that are one matrix, all of layers 1, 3: 400",
        "the export is 0.550 of that",
        "0.961 ± 0.010",
        "the checkpoint in float32",
        "from_pretrained('out'), with compressed-tensors installed",
    ):
        assert words in out


def test_timings(capsys: pytest.CaptureFixture[str]) -> None:
    speed = (median_measurement("decode_tokens_per_second", "llama.cpp q8_0, prompt 8", [1.0, 2.0, 3.0], {}),)
    report = Report(None, ModelReport("tiny.gguf", 1000, 750, speed=speed), make_environment())
    show_llama_cpp(LlamaCppBenchmark(report, ("no cold cache",), "xllamacpp 1", 2, None, None))
    out = capsys.readouterr().out
    assert "tiny.gguf in llama.cpp" in out
    assert out.endswith("2 threads, xllamacpp 1\nno cold cache\n")


def test_a_title_and_cells_are_text_and_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("My [/b] model", ("name", "of"), [("Phone [red]A", "[small] x")])
    out = capsys.readouterr().out
    assert all(text in out for text in ("My [/b] model", "Phone [red]A", "[small] x"))
