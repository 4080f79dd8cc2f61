"""The measurements as `evaluate` has them, against a direct computation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_ishrink.errors import DataError, RequestError, SourceError
from optimum_ishrink.evaluation.evaluate_library import Divergence, Latency, Perplexity
from tests.helpers.tiny import save_tiny, tiny_config

TEXTS = ["the quick brown fox jumps over lazy dogs", "a ship sails at noon", "every day, five lines " * 20]


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("other"), tiny_config("llama"), seed=5)


@pytest.fixture
def model(llama_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)


@pytest.fixture
def other(other_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(other_folder, dtype=torch.float32)


@pytest.fixture
def tokenizer(llama_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(llama_folder)


def windows(tokenizer: Any, length: int) -> torch.Tensor:
    separator = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids = [i for text in TEXTS for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], *separator]]
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


def test_perplexity_is_the_direct_one(model: Any, tokenizer: Any) -> None:
    found = Perplexity().compute(model=model, tokenizer=tokenizer, data=TEXTS, length=16)
    assert found is not None
    ids = windows(tokenizer, 16)
    loss = model(input_ids=ids, labels=ids).loss.item()
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found["n"], found["tokens"]) == (len(ids), len(ids) * 15)
    assert found["perplexity_stderr"] > 0
    assert set(found) == {"perplexity", "perplexity_stderr", "n", "tokens"}


def test_divergence_is_the_direct_one_and_zero_from_itself(model: Any, other: Any, tokenizer: Any) -> None:
    found = Divergence().compute(model=other, base=model, tokenizer=tokenizer, data=TEXTS, length=16)
    assert found is not None
    ids = windows(tokenizer, 16)
    with torch.no_grad():
        p, q = (each(ids).logits[:, :-1].log_softmax(-1) for each in (model, other))
    assert found["kl_divergence"] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
    assert found["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
    alone = Perplexity().compute(model=model, tokenizer=tokenizer, data=TEXTS, length=16)
    assert alone is not None and found["base_perplexity"] == alone["perplexity"]
    same = Divergence().compute(model=model, base=model, tokenizer=tokenizer, data=TEXTS, length=16)
    assert same is not None and (same["kl_divergence"], same["top1_agreement"]) == (0.0, 1.0)


def test_added_texts_are_measured_too(model: Any, tokenizer: Any) -> None:
    measurement = Perplexity()
    measurement.add_batch(data=TEXTS[:2])
    measurement.add_batch(data=TEXTS[2:])
    added = measurement.compute(model=model, tokenizer=tokenizer, length=16)
    assert added == Perplexity().compute(model=model, tokenizer=tokenizer, data=TEXTS, length=16)


def test_folders_are_accepted_like_models(llama_folder: Path, other_folder: Path) -> None:
    found = Divergence().compute(model=str(other_folder), base=llama_folder, data=TEXTS, length=16)
    assert found is not None and found["kl_divergence"] > 0
    with pytest.raises(SourceError):
        Perplexity().compute(model="./nowhere", data=TEXTS)


def test_a_model_in_training_is_measured_without_dropout_and_stays_in_training(model: Any, tokenizer: Any) -> None:
    still = Perplexity().compute(model=model, tokenizer=tokenizer, data=TEXTS, length=16)
    model.model.layers[0].self_attn.attention_dropout = 0.9
    model.train()
    assert Perplexity().compute(model=model, tokenizer=tokenizer, data=TEXTS, length=16) == still
    assert model.training


def test_latency(model: Any, other: Any, llama_folder: Path) -> None:
    found = Latency().compute(model=other, base=model, prompt_length=8, new_tokens=2, rounds=3)
    for metric in ("time_to_first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"):
        low, high = found[f"{metric}_quartiles"]
        assert 0 < low <= found[metric] <= high
        assert found[f"{metric}_ratio"] > 0
        assert found[f"{metric}_verdict"] == "too few rounds to tell"
    assert found["n"] == 3
    alone = Latency().compute(model=llama_folder, prompt_length=8, new_tokens=2, rounds=3)
    assert not any("base" in name or "ratio" in name for name in alone)


def test_invalid_requests(model: Any, tokenizer: Any) -> None:
    for data in ([], None):
        with pytest.raises(DataError, match="there is no text"):
            Perplexity().compute(model=model, tokenizer=tokenizer, data=data)
    with pytest.raises(DataError, match="data is one text; give a list"):
        Perplexity().compute(model=model, tokenizer=tokenizer, data="one text")
    with pytest.raises(DataError, match="the data gives .* give more text"):
        Perplexity().compute(model=model, tokenizer=tokenizer, data=["short"])
    with pytest.raises(RequestError, match="does not bring its tokenizer"):
        Perplexity().compute(model=model, data=TEXTS)
    config = tiny_config("llama")
    config.vocab_size += 8
    larger = AutoModelForCausalLM.from_config(config)
    with pytest.raises(DataError, match="do not share a vocabulary"):
        Divergence().compute(model=model, base=larger, tokenizer=tokenizer, data=TEXTS, length=16)


def test_the_documented_example_runs(
    llama_folder: Path, other_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = Path(__file__).parents[2] / "docs" / "how-to" / "measure-in-scripts.md"
    (code,) = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "notes.txt").write_text("\n\n".join(TEXTS * 12))
    monkeypatch.chdir(tmp_path)
    code = code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(llama_folder)).replace(
        '"small"', f'"{other_folder}"'
    )
    names: dict[str, Any] = {}
    exec(compile(code, str(document), "exec"), names)
    saved = json.loads((tmp_path / "measured.json").read_text())
    assert saved["kl_divergence"] == names["quality"]["kl_divergence"] > 0
    assert saved["decode_tokens_per_second_ratio"] > 0 and names["perplexity"]["perplexity"] > 1


def test_descriptions_of_the_classes() -> None:
    assert "negative log-likelihood" in Perplexity().description
    assert "base: The model to compare with" in Divergence().inputs_description
    assert Perplexity().module_type == "measurement" == Latency().module_type
