from __future__ import annotations

from pathlib import Path

import pytest
import torch

from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.errors import NotFiniteError
from optimum_ishrink.evaluation.text_statistics import token_statistics
from optimum_ishrink.recovery.teacher_text import pair_tokens
from optimum_ishrink.search.text_divergence import Reference
from tests.helpers.trimmed_gguf import trim

CPU = torch.device("cpu")


def windows(source: Source, count: int = 3, length: int = 24) -> torch.Tensor:
    tokenizer = source.load_tokenizer()
    ids = tokenizer("the a of to and in is it you that he was for on are with as his they at be " * 20)["input_ids"]
    return torch.tensor(ids[: count * length]).view(count, length)


def test_a_model_does_not_diverge_from_itself(base_source: Source) -> None:
    model = base_source.load_model(torch.float32, CPU)
    found = Reference(model, windows(base_source), "base").measure(model)
    assert found.value == pytest.approx(0, abs=1e-7)
    assert (found.windows, found.tokens) == (3, 72)


def test_it_is_the_divergence_that_evaluation_measures(base_source: Source) -> None:
    base, other = (base_source.load_model(torch.float32, CPU) for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.2)
    ids = windows(base_source)
    found = Reference(base, ids, "base").measure(other)
    # Evaluation leaves out what follows the last token, which nothing says.
    expected = token_statistics(other, base, ids)["kl"]
    last = found.value * ids.shape[1] - expected.mean(0).sum().item()
    assert 0 < last / ids.shape[1] < found.value
    assert found.carried == found.value


def test_where_nothing_was_removed_it_is_the_same(base_source: Source, tmp_path: Path) -> None:
    whole = open_source(trim(base_source.folder, tmp_path / "whole", share=1.0))
    base = base_source.load_model(torch.float32, CPU)
    other = whole.load_model(torch.float32, CPU)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    tokenizers = whole.load_tokenizer(), base_source.load_tokenizer()
    pair = pair_tokens(*tokenizers, whole.config.vocab_size, base_source.config.vocab_size)
    assert pair is None  # the two have the same tokens by the same numbers
    reference = Reference(base, windows(base_source), "base")
    assert reference.measure(other).value > 0


def test_a_smaller_vocabulary_costs_what_its_text_costs(base_source: Source, tmp_path: Path) -> None:
    small = open_source(trim(base_source.folder, tmp_path / "small", share=0.5))
    base = base_source.load_model(torch.float32, CPU)
    pair = pair_tokens(
        small.load_tokenizer(), base_source.load_tokenizer(), small.config.vocab_size, base_source.config.vocab_size
    )
    assert pair is not None
    found = Reference(base, windows(base_source), "base").measure_trimmed(small.load_model(torch.float32, CPU), pair)
    # Rows that stay have the base's weights: where both read the same tokens, only the normaliser differs.
    assert 0 <= found.carried < found.value
    assert found.value > 0 and found.stderr is not None


def test_predictions_that_are_not_finite_are_refused(base_source: Source) -> None:
    base, other = (base_source.load_model(torch.float32, CPU) for _ in range(2))
    with torch.no_grad():
        next(other.parameters()).fill_(float("nan"))
    reference = Reference(base, windows(base_source), "base")
    with pytest.raises(NotFiniteError, match="the candidate"):
        reference.measure(other)
    with pytest.raises(NotFiniteError, match="base"):
        Reference(other, windows(base_source), "base")
