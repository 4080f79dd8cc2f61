from __future__ import annotations

import copy

import pytest
import torch

from optimum_ishrink.evaluation.samples import PROMPTS, end_tokens, prompt_ids, write_samples
from tests.helpers.tiny import LAYOUT_CASES, tiny_config, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("model_type", ["llama", "openai-gpt"])
def test_samples_equal_greedy_generation(model_type: str) -> None:
    model, tokenizer = tiny_model(tiny_config(model_type)), tiny_tokenizer()
    model.generation_config.update(repetition_penalty=3.0, do_sample=True)  # what a model asks for is not asked here
    found = write_samples(model, tokenizer, 8, PROMPTS[:2])
    for prompt, text in zip(PROMPTS, found, strict=False):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            for _ in range(8):
                token = model(ids).logits[:, -1:].argmax(-1)
                if token.item() == tokenizer.eos_token_id:
                    break
                ids = torch.cat([ids, token], 1)
        expected = ids[0, len(tokenizer(prompt)["input_ids"]) :]
        assert text == tokenizer.decode(expected.tolist(), skip_special_tokens=True)
    assert write_samples(model, tokenizer, 8, PROMPTS[:2]) == found


@pytest.mark.parametrize(("model_type", "variant"), [*LAYOUT_CASES, ("openai-gpt", 0)])
def test_batched_samples_equal_single_ones(model_type: str, variant: int) -> None:
    model, tokenizer = tiny_model(tiny_config(model_type, variant)), tiny_tokenizer()
    prompts = ["A", "A longer one.", "The longest of all three."]
    alone = [text for prompt in prompts for text in write_samples(model, tokenizer, 6, [prompt])]
    assert write_samples(model, tokenizer, 6, prompts) == alone


def test_generation_ends_at_an_end_token() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    ids = torch.tensor([prompt_ids(tokenizer, "Hello")])
    with torch.no_grad():
        first = int(model(ids).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [first, 7]
    assert end_tokens(model, tokenizer) == {first, 7, 2}
    assert write_samples(model, tokenizer, 8, ["Hello"]) == [""]
    model.generation_config.eos_token_id = None
    assert end_tokens(model, tokenizer) == {2}


def test_a_chat_template_makes_the_prompt_a_turn() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    plain = prompt_ids(tokenizer, "Hi")
    assert tokenizer.decode(plain) == "Hi"
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert tokenizer.decode(prompt_ids(tokenizer, "Hi")) == "<user>Hi<assistant>"
