"""What only a trained tokenizer shows: SmolLM2's, on half a million characters of documentation."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from optimum_ishrink.demo import GGUF_FILE, PACKAGE
from optimum_ishrink.vocabulary.required import find_required
from optimum_ishrink.vocabulary.rewrite import write_trimmed_tokenizer
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file
from tests.helpers.tokenizer_kinds import closed_rows

pytestmark = pytest.mark.real

TEXT = "\n\n".join(topics.values())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Any:
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    folder = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(Path(spec.origin).parent, gguf_file=GGUF_FILE).save_pretrained(folder)
    opened = AutoTokenizer.from_pretrained(folder)
    file = read_tokenizer_file(folder)
    splits = find_splits(file)
    return opened, file, splits, find_required(file, splits, opened), opened(TEXT)["input_ids"]


def test_every_token_but_the_special_ones_is_made_of_its_string(real: Any) -> None:
    _, file, splits, _, _ = real
    assert set(np.flatnonzero(~splits.reachable).tolist()) == set(file.added.values())


def test_little_must_stay(real: Any) -> None:
    opened, _, _, required, _ = real
    assert 900 < len(required.ids) < 1300
    chat = opened.apply_chat_template([{"role": "user", "content": "Hi!"}], add_generation_prompt=True)["input_ids"]
    assert {*chat} <= required.ids


@pytest.mark.parametrize(
    ("seed", "share"),
    [pytest.param(0, 0.0, marks=pytest.mark.slow), (1, 0.2), pytest.param(2, 0.6, marks=pytest.mark.slow)],
)
def test_text_whose_tokens_all_stay_is_tokenised_as_before(real: Any, seed: int, share: float, tmp_path: Path) -> None:
    _, file, splits, required, ids = real
    rows = closed_rows(splits, required, ids, seed, share)
    write_trimmed_tokenizer(file.folder, tmp_path, rows)
    small = AutoTokenizer.from_pretrained(tmp_path)
    assert [rows[i] for i in small(TEXT)["input_ids"]] == ids


def test_without_rare_tokens_text_is_longer_and_the_same(real: Any, tmp_path: Path) -> None:
    _, file, splits, required, ids = real
    counts = Counter(ids)
    rows = splits.close([*required.ids, *(i for i, _ in counts.most_common(2500))])
    write_trimmed_tokenizer(file.folder, tmp_path, rows.tolist())
    small = AutoTokenizer.from_pretrained(tmp_path)
    found = small(TEXT)["input_ids"]
    assert small.decode(found, clean_up_tokenization_spaces=False) == TEXT
    estimated = splits.pieces(np.isin(np.arange(len(splits.left)), rows))
    assert len(ids) < len(found) < 1.1 * len(ids)
    assert len(found) == pytest.approx(sum(estimated[i] * count for i, count in counts.items()), rel=0.01)
