from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.errors import DataError
from optimum_ishrink.evaluation.inputs import check_evaluation_texts
from optimum_ishrink.text.calibration import calibration_windows, held_out_windows, window_kinds
from optimum_ishrink.text.rows import row_text
from optimum_ishrink.text.sources import PYDOC, TextSource, label_sources, parse_sources, windows_per_source
from optimum_ishrink.text.windows import token_windows
from tests.helpers.tiny import tiny_config, tiny_model, tiny_tokenizer


def test_sources_are_parsed() -> None:
    sources = parse_sources("self, a.txt,b/c.jsonl,org/name:config:split:column")
    assert [source.label for source in sources] == ["self", "a.txt", "c.jsonl", "org/name:config:split:column"]
    assert sources[0].is_self
    assert [source.path is not None for source in sources] == [False, True, True, False]
    with pytest.raises(DataError, match="no text source"):
        parse_sources(" , ")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "a"}, "a"),
        (
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]},
            "user: hi\nassistant: yes",
        ),
        ({"prompt": "2+2=", "completion": "4"}, "2+2=4"),
        ({"question": "Which?", "choices": ["x", "y"], "answer": 1}, "Question: Which?\nAnswer: y"),
    ],
)
def test_rows(row: dict[str, object], text: str) -> None:
    assert row_text(row) == text
    assert row_text({**row, "other": "o"}, "other") == "o"


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two"}\n')
    assert list(TextSource(str(path)).documents()) == ["one", "two"]
    path.write_text('{"text": "one"}\n{"words": "two"}\n')
    with pytest.raises(DataError, match="line 2 is not a row with 'text'"):
        list(TextSource(str(path)).documents())


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        TextSource(str(tmp_path / "no.txt")).documents()
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="is empty"):
        TextSource(str(tmp_path / "empty.txt")).documents()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        list(TextSource(str(tmp_path / "latin.txt")).documents())


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.txt", b" \n\t\n" * 40_000),
        ("a.jsonl", b"\n  \n"),
        ("a.jsonl", b'{"text": ""}\n{"text": " "}\n'),
        ("a.txt", b""),
        ("a.jsonl", b""),
    ],
)
def test_a_source_without_text_is_empty(tmp_path: Path, name: str, contents: bytes) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(DataError, match=f"text file .*{name} is empty; name one that holds text"):
        TextSource(str(tmp_path / name)).documents()


def test_a_data_set_without_text_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [])
    with pytest.raises(DataError, match="data set org/name is empty"):
        TextSource("org/name").documents()


def test_blank_documents_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n{"text": "one"}\n{"text": ""}\n{"text": "two"}\n')
    assert list(TextSource(str(tmp_path / "a.jsonl")).documents()) == ["one", "two"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_unreadable_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = TextSource(str(tmp_path / name))
    (tmp_path / name).write_bytes(b'{"text": "caf\xe9"}')
    with pytest.raises(DataError, match=f"^text file .*{name} is not UTF-8 \\(line 1\\); save it as UTF-8$"):
        next(iter(source.documents()))
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match="does not exist"):
        source.fingerprint()
    (tmp_path / name).mkdir()
    for use in (source.documents, source.fingerprint):
        with pytest.raises(DataError, match=f"^text file .*{name} cannot be read: Is a directory$"):
            use()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        source.documents()


def test_labels_are_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def labels(text: str) -> list[str]:
        return label_sources(parse_sources(text))

    assert labels("self,/x/a.txt,org/name:c,/y/b.txt") == ["self", "a.txt", "org/name:c", "b.txt"]
    assert labels("/x/a.txt,/y/a.txt,/z/b.txt") == ["x/a.txt", "y/a.txt", "b.txt"]
    assert labels("/u/x/a.txt,/v/x/a.txt") == ["u/x/a.txt", "v/x/a.txt"]
    assert labels("/a.txt,/x/a.txt,/y/x/a.txt") == ["/a.txt", "/x/a.txt", "y/x/a.txt"]
    assert labels("a.txt,x/a.txt") == [f"{tmp_path.name}/a.txt", "x/a.txt"]
    assert labels("a.txt,./a.txt,x/../a.txt,self,self") == ["a.txt", "a.txt (2)", "a.txt (3)", "self", "self (2)"]


def test_a_hub_data_set_that_cannot_be_loaded() -> None:
    with pytest.raises(DataError, match="neither a .txt or .jsonl file nor a Hub data set"):
        list(TextSource("nobody/nothing").documents())


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    seen = []

    def load(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        seen.append((name, config, split))
        return [{"body": "x"}, {"body": "y"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(TextSource("org/name:c:s:body").documents()) == ["x", "y"]
    with pytest.raises(DataError, match="no column to read"):
        list(TextSource("org/name").documents())
    assert seen == [("org/name", "c", "s"), ("org/name", None, "train")]
    assert [row.text() for row in TextSource("org/name:::body").rows()] == ["x", "y"]
    with pytest.raises(DataError, match="no column to read"):
        list(TextSource("org/name").rows())


def test_windows_hold_the_text_in_order(text_file: Path) -> None:
    tokenizer = tiny_tokenizer()
    windows = token_windows(TextSource(str(text_file)).documents(), tokenizer, 32, None, seed=None, label="words")
    text = tokenizer.decode(windows.flatten().tolist())
    assert text.startswith("Line 0: the quick brown fox")
    assert windows.shape[1] == 32
    assert text_file.read_text().startswith(text[:5000])


def test_windows_are_drawn_by_seed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"row {i} " * 5}) for i in range(50)))
    draws = [
        token_windows(TextSource(str(path)).documents(), tiny_tokenizer(), 16, 8, seed=seed, label="rows")
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_text_that_is_too_short() -> None:
    with pytest.raises(DataError, match="short gives 6 tokens, 0 windows of 8: give more text"):
        token_windows(["hello"], tiny_tokenizer(), 8, None, seed=None, label="short")
    with pytest.raises(DataError, match="3 windows of 2; 4 were requested"):
        token_windows(["hello"], tiny_tokenizer(), 2, 4, seed=None, label="short")


def test_pythons_reference_topics_are_a_source() -> None:
    assert sum(len(text) for text in TextSource(PYDOC).documents()) > 100_000
    assert label_sources([TextSource(PYDOC)]) == ["Python reference topics"]


def test_sources_are_mixed_in_equal_shares(text_file: Path, other_text: Path) -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    sources = parse_sources(f"{text_file},{other_text},self")
    windows = calibration_windows(sources, model, tokenizer, samples=7, length=16, seed=0)
    assert windows.shape == (7, 16)
    texts = [tokenizer.decode(window) for window in windows]
    assert sum("fox" in text or "Line" in text or "dogs" in text or "quick" in text for text in texts) >= 2
    again = calibration_windows(sources, model, tokenizer, samples=7, length=16, seed=0)
    assert torch.equal(windows, again)
    with pytest.raises(DataError, match="3 text sources need at least as many"):
        calibration_windows(sources, model, tokenizer, samples=2, length=16, seed=0)


def test_a_fingerprint_is_of_the_contents(text_file: Path, other_text: Path) -> None:
    assert TextSource(str(text_file)).fingerprint() == TextSource(str(text_file)).fingerprint()
    assert TextSource(str(text_file)).fingerprint() != TextSource(str(other_text)).fingerprint()
    assert TextSource("self").fingerprint() is None


def test_held_out_windows_share_no_token_with_calibration(tmp_path: Path) -> None:
    # Every line is different, so that a window shows where it is from.
    (tmp_path / "a.txt").write_text("\n".join(f"a{i:05d}" for i in range(400)))
    (tmp_path / "copy.txt").write_text((tmp_path / "a.txt").read_text())
    (tmp_path / "b.txt").write_text("\n".join(f"b{i:05d}" for i in range(400)))
    tokenizer = tiny_tokenizer()
    calibrated = parse_sources([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    taken = calibration_windows(calibrated, None, tokenizer, samples=5, length=70, seed=1)
    seen = set(re.findall(r"[ab]\d{5}", " ".join(tokenizer.batch_decode(taken))))
    assert len(seen) > 40
    how = {"calibrated": calibrated, "calibration_samples": 5, "calibration_length": 70, "seed": 1}
    for texts in (calibrated, parse_sources(str(tmp_path / "copy.txt")), (*calibrated, *calibrated)):
        windows = held_out_windows(texts, None, tokenizer, samples=4, length=50, **how)
        assert windows.shape == (4, 50)
        assert len({tuple(window.tolist()) for window in windows}) == 4
        found = set(re.findall(r"[ab]\d{5}", " ".join(tokenizer.batch_decode(windows))))
        assert len(found) > 20
        assert not found & seen
        assert torch.equal(windows, held_out_windows(texts, None, tokenizer, samples=4, length=50, **how))
    with pytest.raises(DataError, match="2 text sources need at least as many samples to measure on, not 1"):
        held_out_windows(calibrated, None, tokenizer, samples=1, length=50, **how)
    message = r"a.txt gives \d+ tokens, \d+ windows of 50 after the 210 used for calibration; 200 were requested"
    with pytest.raises(DataError, match=message):
        held_out_windows(calibrated, None, tokenizer, samples=400, length=50, **how)


def test_held_out_samples_of_the_model_differ() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    sources = parse_sources("self")
    taken = calibration_windows(sources, model, tokenizer, samples=4, length=12, seed=0)
    how = {"calibrated": sources, "calibration_samples": 4, "calibration_length": 12}
    found = [held_out_windows(sources, model, tokenizer, samples=4, length=12, seed=seed, **how) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    rows = {tuple(window.tolist()) for window in taken}
    assert not rows & {tuple(window.tolist()) for window in found[0]}


def test_a_source_that_is_named_twice_gives_two_shares_of_different_windows(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {i} of many words" for i in range(400)))
    other = tmp_path / "b.txt"
    other.write_text("\n".join(f"{i} other words" for i in range(400)))
    sources = parse_sources([str(path), str(other), str(path)])
    assert [(source.label, share) for source, share in windows_per_source(sources, 9)] == [("a.txt", 6), ("b.txt", 3)]
    windows = calibration_windows(sources, None, tokenizer, samples=9, length=16, seed=3)
    assert len(windows.unique(dim=0)) == 9
    kinds = window_kinds(sources, 9, seed=3)
    alone = token_windows(sources[1].documents(), tokenizer, 16, 3, seed=3, label="b")
    assert sorted(windows[kinds == 1].tolist()) == sorted(alone.tolist())


def test_a_folder_is_not_a_text_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder; name a .txt or .jsonl file in it"):
        TextSource(str(tmp_path)).documents()
    with pytest.raises(DataError, match="is a folder"):  # before any long work, and before a library reads it
        check_evaluation_texts(IShrinkConfig(eval_text=str(tmp_path)), {})
