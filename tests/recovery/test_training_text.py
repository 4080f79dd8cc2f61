"""Recovery text: which tokens have a label, how windows are packed, and the teacher's own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.errors import DataError
from optimum_ishrink.recovery.self_text import self_text
from optimum_ishrink.recovery.targets import IGNORED
from optimum_ishrink.recovery.training_text import HELD_OUT_MOST, pack, recovery_text, source_documents
from optimum_ishrink.text.sampling import sample_text
from optimum_ishrink.text.sources import TextSource
from tests.helpers.tiny import tiny_config, tiny_model, tiny_tokenizer


def test_labels_stand_on_answers_alone() -> None:
    tokenizer = tiny_tokenizer()
    documents = [[("ab", False), ("cd", True)], [("e", False), ("fgh", True), ("i", False)]] * 3
    ids, labels, _ = pack(documents, tokenizer, 6, 3, labels="answers", seed=0, label="x")
    assert ids.shape == labels.shape == (3, 6)
    answered = set(tokenizer("cdfgh")["input_ids"]) | {tokenizer.eos_token_id}
    assert ((labels == ids) | (labels == IGNORED)).all()
    assert set(labels[labels != IGNORED].tolist()) <= answered
    assert (labels[torch.isin(ids, torch.tensor(tokenizer("cdfgh")["input_ids"]))] != IGNORED).all()
    assert (labels[torch.isin(ids, torch.tensor(tokenizer("abei")["input_ids"]))] == IGNORED).all()
    _, everything, _ = pack(documents, tokenizer, 6, 3, labels="text", seed=0, label="x")
    assert torch.equal(everything, ids)


def test_text_that_is_too_short() -> None:
    with pytest.raises(
        DataError, match=r"x gives 4 tokens, 0 windows of 6; 2 were requested: give more text, or fewer"
    ):
        pack([[("abc", False)]], tiny_tokenizer(), 6, 2, labels="text", seed=0, label="x")


def sources(tmp_path: Path) -> dict[str, TextSource]:
    rows = [{"question": f"What is {i}?", "choices": ["a", str(i)], "answer": 1} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "only text"}))
    (tmp_path / "plain.txt").write_text("plain words " * 200)
    names = {name: str(tmp_path / name) for name in ("rows.jsonl", "text.jsonl", "plain.txt")}
    return {name: TextSource(text) for name, text in {**names, "self": "self", "pydoc": "pydoc"}.items()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.jsonl", "text.jsonl line 1 has no answer to take labels from; give rows with 'messages'"),
        ("plain.txt", "plain.txt is plain text without answers"),
        ("pydoc", "Python reference topics is plain text without answers"),
        ("self", "text that the model samples itself has no answers to take labels from"),
    ],
)
def test_labels_asked_of_text_that_has_none(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        mix(tmp_path, name, labels="answers")


def mix(tmp_path: Path, *names: str, tokens: int = 640, step: int = 4, labels: str = "text") -> Any:
    known = sources(tmp_path)

    def sample(count: int) -> torch.Tensor:
        return torch.full((count, 16), 7)

    options = IShrinkConfig(
        recovery_data=[known[name].text for name in names],
        recovery_length=16,
        recovery_tokens=tokens,
        recovery_batch_size=step,
        recovery_labels=labels,
    )
    return recovery_text(options, tiny_tokenizer(), sample=sample)


def test_sources_are_mixed_in_equal_shares_and_steps_are_whole(tmp_path: Path) -> None:
    text = mix(tmp_path, "self", "rows.jsonl", "plain.txt")
    assert (text.trained % 4, text.held_out) == (0, 2)
    assert len(text.input_ids) * 16 <= 640
    own = (text.input_ids == 7).all(1).sum().item()
    assert own == -(-len(text.input_ids) // 3)
    again = mix(tmp_path, "self", "rows.jsonl", "plain.txt")
    assert torch.equal(text.input_ids, again.input_ids)
    assert text.kinds.bincount()[0] == own
    assert torch.equal(text.kinds == 0, (text.input_ids == 7).all(1))
    answers = mix(tmp_path, "rows.jsonl", labels="answers")
    assert 0 < (answers.labels != IGNORED).float().mean() < 0.5
    assert mix(tmp_path, "self", tokens=16 * 2000).held_out == HELD_OUT_MOST


def test_a_source_that_is_named_twice_gives_no_text_twice(tmp_path: Path) -> None:
    text = mix(tmp_path, "rows.jsonl", "plain.txt", "rows.jsonl", "rows.jsonl")
    counts = text.kinds.bincount()
    assert len(counts) == 2
    assert abs(counts[0].item() - 3 * counts[1].item()) <= 3
    rows = text.input_ids[text.kinds == 0]
    assert len(rows.unique(dim=0)) == len(rows)


def test_too_few_tokens(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="80 tokens are 5 windows of 16, too few for one step of 4 windows and 2 held out"
    ):
        mix(tmp_path, "self", tokens=80)
    with pytest.raises(DataError, match="4 text sources share 3 windows; give more tokens"):
        mix(tmp_path, "self", "self", "self", "self", tokens=48, step=1)


def test_plain_text_and_documents_of_rows(tmp_path: Path) -> None:
    known = sources(tmp_path)
    assert next(source_documents(known["plain.txt"], tiny_tokenizer(), "text"))[0][0].startswith("plain words")
    assert next(source_documents(known["pydoc"], tiny_tokenizer(), "text"))[0][1] is False
    rows = list(source_documents(known["rows.jsonl"], tiny_tokenizer(), "text"))
    assert rows[3] == [("Question: What is 3?\nAnswer:", False), (" 3", True)]
    for name in ("plain.txt", "self", "pydoc"):
        with pytest.raises(DataError, match="is plain text without rows; name a .jsonl file or a Hub data set"):
            known[name].rows()
    (tmp_path / "odd.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    with pytest.raises(DataError, match="odd.jsonl line 2 is not a row with"):
        list(TextSource(str(tmp_path / "odd.jsonl")).rows())


# Text that the model samples itself.


def test_self_text_leaves_out_what_is_unlikely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    drawn = sample_text(model, tokenizer, 12, 10, seed=3)
    cache = tmp_path / "deep" / "self.safetensors"
    words = self_text(lambda: model, tokenizer, 12, 8, seed=3, dropped=0.2, cache=cache)
    kept = drawn.mean_nll.argsort()[:8].sort().values
    assert torch.equal(words, drawn.input_ids[kept])
    monkeypatch.setattr("optimum_ishrink.recovery.self_text.sample_text", None)
    assert torch.equal(self_text(lambda: model, tokenizer, 12, 8, seed=3, dropped=0.2, cache=cache), words)


def test_a_low_temperature_draws_what_is_likely() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    cold, warm = (sample_text(model, tokenizer, 12, 8, seed=3, temperature=t).mean_nll.mean() for t in (0.3, 1.0))
    assert cold < warm
    plain = self_text(lambda: model, tokenizer, 12, 8, seed=3, dropped=0.0)
    assert torch.equal(plain, sample_text(model, tokenizer, 12, 8, seed=3).input_ids)
