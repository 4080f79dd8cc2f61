"""A chat with a trained model."""

from __future__ import annotations

import pytest

from optimum_ishrink.chat.conversation import Conversation
from optimum_ishrink.chat.opening import open_conversation
from optimum_ishrink.chat.options import ChatOptions
from optimum_ishrink.chat.speaker import Speaker
from optimum_ishrink.demo import demo_source
from optimum_ishrink.options.run import RunOptions

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_trained_model_answers_and_its_cache_changes_nothing() -> None:
    run = RunOptions(dtype="float32", device="cpu")
    talk = open_conversation(demo_source(), None, ChatOptions(greedy=True, max_new_tokens=24), run)
    first = talk.ask("What is the capital of France?").answers["shrunk"]
    assert "Paris" in first.text
    assert (first.ended, first.cached_tokens) == ("stop", 0)
    second = talk.ask("Name its river.").answers["shrunk"]
    assert second.cached_tokens > first.prompt_tokens
    known = talk.speakers["shrunk"]
    fresh = Conversation(Speaker(known.model, known.tokenizer, "again", reuse=False), None, talk.options)
    for turn in talk.turns:
        answer = fresh.ask(turn.prompt).answers["shrunk"]
        assert (answer.text, answer.cached_tokens) == (turn.answers["shrunk"].text, 0)
