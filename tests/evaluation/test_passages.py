from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from optimum_ishrink.errors import DataError
from optimum_ishrink.evaluation.passages import Passage, TextWindows, retokenize, text_windows
from optimum_ishrink.evaluation.text_quality import (
    WindowFigures,
    bits_per_byte,
    passage_figures,
    text_measurements,
    window_figures,
)
from optimum_ishrink.text.windows import token_windows
from tests.helpers.beginning import beginning_tokenizer
from tests.helpers.tiny import VOCAB, tiny_config, tiny_model, tiny_tokenizer

TEXTS = [f"Zur Mühle {i}: naïve café – 日本語 und {i * 37} Wörter, dann Ende." for i in range(40)]


def merging_tokenizer(size: int = 330) -> PreTrainedTokenizerFast:
    """A tokenizer with tokens of several bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), merging_tokenizer()], ids=["bytes", "merges"])
def test_windows_are_those_of_calibration_and_have_their_text(tokenizer: PreTrainedTokenizerFast) -> None:
    windows = text_windows(TEXTS, tokenizer, 24, 20, seed=3, label="words")
    assert torch.equal(windows.ids, token_windows(TEXTS, tokenizer, 24, 20, seed=3, label="words"))
    assert windows.passages is not None
    assert len(windows) == len(windows.passages) == 20
    whole = "".join(passage.context + "".join(passage.parts) for passage in windows.passages)
    decoded = tokenizer.decode(windows.ids.flatten().tolist(), skip_special_tokens=True)
    # The end may split a character of several bytes.
    assert whole[:-1] == decoded[: len(whole) - 1]
    assert sum(sum(passage.ended) for passage in windows.passages) == (windows.ids[:, 1:] == 2).sum()


def test_bits_per_byte_agree_with_a_direct_computation() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_config("llama"))
    text = "The quick brown fox jumps over the lazy dog. " * 20
    windows = text_windows([text], tokenizer, 40, 5, seed=0, label="words")
    _, found = text_measurements(model, None, windows, "words", {"seed": 0})
    values = {m.metric: m for m in found}
    with torch.no_grad():
        bits = sum(model(w[None], labels=w[None]).loss.double().item() * 39 for w in windows.ids) / math.log(2)
    assert values["bits_per_byte"].value == pytest.approx(bits / (5 * 39), rel=1e-4)  # a token is a byte here
    assert values["bits_per_byte"].settings == {"seed": 0, "tokens": 195, "bytes": 195}
    assert values["bits_per_byte"].value == pytest.approx(math.log2(values["perplexity"].value), rel=1e-4)
    assert [m.metric for m in found] == ["perplexity", "bits_per_byte"]


def test_bytes_do_not_depend_on_the_tokens() -> None:
    for tokenizer in (tiny_tokenizer(), merging_tokenizer()):
        length = len(tokenizer(TEXTS[0])["input_ids"])
        (passage,) = text_windows([TEXTS[0]], tokenizer, length, 1, seed=0, label="words").passages or ()
        assert passage.context + "".join(passage.parts) == TEXTS[0]
        assert passage.bytes == len(TEXTS[0].encode()) - len(passage.context.encode())
    assert length < passage.bytes / 2


def test_another_tokenizer_reads_and_predicts_the_same_text() -> None:
    ours, theirs = merging_tokenizer(), tiny_tokenizer()
    windows = text_windows(TEXTS, ours, 24, 20, seed=1, label="words")
    assert windows.passages is not None
    for passage in windows.passages:
        ids, context = retokenize(passage, theirs)
        assert theirs.decode(ids[:context].tolist(), skip_special_tokens=True) == passage.context
        predicted = ids[context:]
        assert len(predicted) == passage.bytes + sum(passage.ended)
        assert theirs.decode(predicted.tolist(), skip_special_tokens=True) == "".join(passage.parts)


def test_a_tokenizer_of_bytes_gives_the_same_bits_either_way() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model(tiny_config("llama"))
    windows = text_windows(
        [text.encode("ascii", "ignore").decode() for text in TEXTS], tokenizer, 24, 8, seed=0, label="w"
    )
    _, ours = window_figures(model, None, windows, "w")
    assert windows.passages is not None
    again = passage_figures(model, tokenizer, windows.passages, "w")
    assert again.tokens == ours.tokens
    assert again.bytes == ours.bytes
    assert again.nll == pytest.approx(ours.nll, rel=1e-6)


def test_a_context_without_text_starts_with_the_end_of_a_text() -> None:
    tokenizer = tiny_tokenizer()
    passage = Passage("", ("ab", "c"), (True, False))
    ids, context = retokenize(passage, tokenizer)
    assert (ids[0].item(), context, len(ids)) == (tokenizer.eos_token_id, 1, 5)
    bare = merging_tokenizer()
    bare.eos_token = None
    assert retokenize(passage, bare)[0][0].item() == bare.bos_token_id
    bare.bos_token = None
    with pytest.raises(DataError, match="neither an end- nor a beginning-of-text token"):
        retokenize(passage, bare)


def test_documents_without_text_still_end() -> None:
    windows = text_windows(["ab", "", "cd"], tiny_tokenizer(), 7, 1, seed=0, label="words")
    (passage,) = windows.passages or ()
    assert sum(passage.ended) == (windows.ids[:, 1:] == 2).sum() == 3
    assert retokenize(passage, tiny_tokenizer())[0].tolist() == windows.ids[0].tolist()


def test_unknown_text_has_no_bits_per_byte() -> None:
    assert bits_per_byte(WindowFigures((1.0, 2.0), (5, 5))) is None
    assert bits_per_byte(WindowFigures((1.0, 2.0), (5, 5), (0, 0))) is None
    one = bits_per_byte(WindowFigures((math.log(2) * 8,), (5,), (4,)))
    assert one is not None
    assert (one.value, one.stderr) == (pytest.approx(2), None)
    windows = TextWindows(torch.randint(3, VOCAB, (3, 8)))
    _, found = text_measurements(tiny_model(tiny_config("llama")), None, windows, "ids", {})
    assert [m.metric for m in found] == ["perplexity"]
    with pytest.raises(DataError, match="gives 6 tokens, 0 windows of 512"):
        text_windows(["hello"], tiny_tokenizer(), 512, 1, seed=0, label="short")


@pytest.mark.parametrize("tokens", [("<s>",), ("<pad>", "<s>")])
def test_perplexity_behind_bos_agrees_with_a_direct_computation(tokens: tuple[str, ...]) -> None:
    tokenizer, model = beginning_tokenizer(*tokens), tiny_model(tiny_config("gemma"))
    text = "The quick brown fox jumps over the lazy dog. " * 20
    windows = text_windows([text], tokenizer, 40, 5, seed=0, label="words")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    inside = 40 - len(tokens)
    losses = []
    for at in range(0, 5 * inside, inside):
        whole = tokenizer(text[at : at + inside], return_tensors="pt")["input_ids"]
        assert whole[0, len(tokens) :].tolist() == ids[at : at + inside]
        labels = whole.clone()
        labels[:, : len(tokens)] = -100
        with torch.no_grad():
            losses.append(model(whole, labels=labels).loss.double().item())
    _, found = text_measurements(model, None, windows, "words", {})
    values = {m.metric: m for m in found}
    mean = sum(losses) / 5
    assert values["perplexity"].value == pytest.approx(math.exp(mean), rel=1e-4)
    assert values["perplexity"].tokens == 5 * inside
    assert values["bits_per_byte"].value == pytest.approx(mean / math.log(2), rel=1e-4)
