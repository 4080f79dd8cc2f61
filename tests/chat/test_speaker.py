from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_ishrink.chat.options import ChatOptions
from optimum_ishrink.chat.speaker import Speaker
from optimum_ishrink.errors import DataError, NotFiniteError, RequestError
from tests.helpers.talkers import speaker, talking_tokenizer
from tests.helpers.tiny import LAYOUT_CASES, tiny_config, tiny_model

GREEDY = ChatOptions(greedy=True, max_new_tokens=12)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("model_type", ["llama", "openai-gpt"])
def test_a_streamed_answer_is_what_generate_writes(model_type: str) -> None:
    talker = speaker(model_type)
    heard: list[str] = []
    found = talker.answer([user("Hello")], GREEDY, on_text=heard.append)
    ids = torch.tensor([talker.tokenizer("<user>Hello<assistant>")["input_ids"]])
    expected = talker.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
    )[0, ids.shape[1] :]
    assert found.text == "".join(heard) == talker.tokenizer.decode(expected, skip_special_tokens=True)
    assert (found.tokens, found.prompt_tokens, found.cached_tokens) == (len(expected), ids.shape[1], 0)
    assert found.first_token_seconds is not None
    assert 0 < found.first_token_seconds <= found.total_seconds
    assert found.decode_tokens_per_second is not None
    assert str(found) == found.text
    assert set(found.to_json()) == {
        "text",
        "tokens",
        "prompt_tokens",
        "cached_tokens",
        "first_token_seconds",
        "decode_tokens_per_second",
        "total_seconds",
        "ended",
    }


@pytest.mark.parametrize(("model_type", "variant"), [*LAYOUT_CASES, ("openai-gpt", 0)])
def test_the_cache_of_earlier_turns_changes_no_answer(model_type: str, variant: int) -> None:
    model, tokenizer = tiny_model(tiny_config(model_type, variant)), talking_tokenizer()
    reusing, fresh = (Speaker(model, tokenizer, "tiny", reuse=reuse) for reuse in (True, False))
    messages: list[dict[str, str]] = []
    for prompt in ("Hi", "And then?", "Why so?"):
        messages.append(user(prompt))
        found, expected = (each.answer(messages, GREEDY) for each in (reusing, fresh))
        assert found.text == expected.text
        assert expected.cached_tokens == 0
        again = reusing.answer(messages, GREEDY)  # goes back within the cache, or begins anew
        assert again.text == expected.text
        messages.append(assistant(found.text))


def test_the_cache_is_reused_up_to_where_a_conversation_changed() -> None:
    talker = speaker()
    first = talker.answer([user("Hello")], GREEDY)
    same = talker.answer([user("Hello")], GREEDY)
    assert same.cached_tokens == first.prompt_tokens - 1  # one token has to be read
    other = talker.answer([user("Help")], GREEDY)
    assert other.cached_tokens == len("<user>Hel")
    assert talker.answer([{"role": "system", "content": "x"}, user("Hello")], GREEDY).cached_tokens == 1
    talker.forget()
    assert talker.answer([user("Hello")], GREEDY).cached_tokens == 0


def test_a_window_that_slid_on_is_read_again() -> None:
    talker = speaker("mistral", sliding_window=3, seed=1)
    talker.answer([user("Hello there")], GREEDY)
    assert talker.answer([user("Hello there")], GREEDY).cached_tokens == 0


def test_sampling_follows_the_seed_and_leaves_torchs_generator_alone() -> None:
    talker = speaker()
    hot = ChatOptions(temperature=5.0, max_new_tokens=12)
    state = torch.get_rng_state()
    texts = [talker.answer([user("Hello")], hot, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(state, torch.get_rng_state())


def test_the_generation_config_decides_unless_it_is_overridden() -> None:
    talker = speaker()
    talker.model.generation_config.update(do_sample=True, temperature=0.3, top_p=0.9, max_new_tokens=7)
    assert talker.settings(ChatOptions()) == {
        "do_sample": True,
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 50,  # what generate takes where the config says nothing
        "max_new_tokens": 7,
    }
    assert talker.answer([user("Hello")], ChatOptions()).tokens <= 7
    assert talker.settings(ChatOptions(temperature=2.0, max_new_tokens=3))["temperature"] == 2.0
    for options in (ChatOptions(greedy=True), ChatOptions(temperature=0)):
        found = talker.settings(options)
        assert found["do_sample"] is False
        assert "temperature" not in found
    hot = talker.answer([user("Hello")], GREEDY)
    assert hot.text == talker.answer([user("Hello")], GREEDY.replace(max_new_tokens=12), seed=9).text


def test_settings_that_would_break_a_stream_are_overruled() -> None:
    talker = speaker()
    expected = talker.answer([user("Hello")], GREEDY).text
    talker.model.generation_config.update(num_beams=3, num_return_sequences=2, max_length=5)
    assert talker.answer([user("Hello")], GREEDY).text == expected


def test_an_answer_ends_at_an_end_token() -> None:
    talker = speaker()
    free = talker.answer([user("Hello")], GREEDY)
    assert free.ended == "length"
    ids = torch.tensor([talker.read([user("Hello")])])
    first = int(talker.model(ids).logits[0, -1].argmax())
    ending = Speaker(talker.model, talker.tokenizer, "tiny")
    talker.model.generation_config.eos_token_id = [first]
    found = ending.answer([user("Hello")], GREEDY)
    assert (found.tokens, found.ended, found.decode_tokens_per_second) == (1, "stop", None)


def test_an_answer_ends_at_a_text_to_stop_at() -> None:
    talker = speaker()
    whole = talker.answer([user("Hello")], GREEDY)
    talker.model.generation_config.stop_strings = [whole.text[1]]
    found = talker.answer([user("Hello")], GREEDY)
    assert (found.text, found.ended) == (whole.text[:2], "stop")


def test_ctrl_c_ends_an_answer_or_is_raised() -> None:
    talker = speaker()
    whole = talker.answer([user("Hello")], GREEDY)
    heard: list[str] = []

    def interrupt(piece: str) -> None:
        heard.append(piece)
        if len(heard) == 3:
            raise KeyboardInterrupt

    found = talker.answer([user("Hello")], GREEDY, on_text=interrupt, stoppable=True)
    assert (found.ended, found.text) == ("user", "".join(heard))
    assert whole.text.startswith(found.text)
    after = talker.answer([user("Hello"), assistant(found.text), user("Go on")], GREEDY)
    assert after.cached_tokens == 0  # a cache that was interrupted is not used
    assert (
        after.text == speaker(reuse=False).answer([user("Hello"), assistant(found.text), user("Go on")], GREEDY).text
    )
    heard.clear()
    with pytest.raises(KeyboardInterrupt):
        talker.answer([user("Hello")], GREEDY, on_text=interrupt)


def test_ctrl_c_before_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    talker = speaker()
    talker.warm_up()

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(talker.model, "generate", interrupt)
    found = talker.answer([user("Hello")], GREEDY, stoppable=True)
    assert (found.text, found.tokens, found.first_token_seconds, found.ended) == ("", 0, None, "user")


def test_without_a_template_the_last_prompt_is_completed() -> None:
    talker = Speaker(tiny_model(tiny_config("llama")), talking_tokenizer(None), "tiny")
    assert not talker.has_template
    assert talker.tokenizer.decode(talker.read([user("a"), assistant("b"), user("One two")])) == "One two"
    with pytest.raises(RequestError, match="tiny has no chat template, so that a system prompt has no place"):
        talker.read([{"role": "system", "content": "x"}, user("a")])


def test_what_cannot_be_read_is_refused() -> None:
    talker = speaker(max_position_embeddings=64)
    with pytest.raises(
        RequestError, match=r"the conversation has 117 tokens with this prompt, and tiny-0 .* \(/clear"
    ):
        talker.read([user("x" * 100)])
    refusing = Speaker(
        talker.model, talking_tokenizer("{{ raise_exception('no system role') if messages[0].role == 'system' }}"), "t"
    )
    with pytest.raises(DataError, match=r"what t is to read is a conversation that the chat template refuses \(no sy"):
        refusing.read([{"role": "system", "content": "x"}, user("a")])
    empty = Speaker(talker.model, talking_tokenizer("{{ '' }}"), "t")
    with pytest.raises(DataError, match="the prompt has no tokens for t"):
        empty.read([user("a")])
    small = speaker(vocab_size=40)
    with pytest.raises(DataError, match="the conversation has the token"):
        small.read([user("Hello")])


def test_an_answer_ends_where_the_positions_do() -> None:
    talker = speaker(max_position_embeddings=32)
    found = talker.answer([user("Hello")], GREEDY.replace(max_new_tokens=100))
    assert found.ended == "length"
    assert found.prompt_tokens + found.tokens == 32


def test_damaged_weights_are_noticed_before_the_first_answer() -> None:
    talker = speaker()
    with torch.no_grad():
        talker.model.model.layers[1].mlp.up_proj.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"tiny-0 gives NaN on a first prompt, first in model\.layers\.1"):
        talker.answer([user("Hello")], GREEDY)


def test_the_first_answer_is_preceded_by_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    talker = speaker()
    calls: list[int] = []
    run = talker.model.generate
    monkeypatch.setattr(talker.model, "generate", lambda *ids, **how: [calls.append(0), run(*ids, **how)][1])
    talker.answer([user("Hello")], GREEDY)
    talker.answer([user("Hello")], GREEDY)
    assert len(calls) == 3
