from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.core import micro_batch
from optimum_ishrink.errors import DataError, NotFiniteError
from optimum_ishrink.text.sampling import draw, sample_text
from tests.helpers.tiny import PROOF_CASES, VOCAB, tiny_config, tiny_model, tiny_tokenizer


def test_sampling_follows_the_models_distribution_and_the_seed() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    state = torch.random.get_rng_state()
    windows = sample_text(model, tokenizer, 12, 6, seed=3, batch_size=4).input_ids
    assert torch.equal(state, torch.random.get_rng_state())
    assert windows.shape == (6, 12)
    assert (windows[:, 0] == tokenizer.bos_token_id).all()
    assert torch.equal(windows, sample_text(model, tokenizer, 12, 6, seed=3, batch_size=4).input_ids)
    assert not torch.equal(windows, sample_text(model, tokenizer, 12, 6, seed=4, batch_size=4).input_ids)
    # A model for which all tokens are equally likely samples nearly all of them.
    with torch.no_grad():
        model.lm_head.weight.zero_()
    uniform = sample_text(model, tokenizer, 26, 60, seed=0).input_ids[:, 1:].flatten()
    assert uniform.bincount(minlength=VOCAB).max() <= 20
    assert uniform.unique().numel() > 0.95 * VOCAB


@given(st.integers(1, 700), st.integers(0, 99))
def test_a_draw_is_where_the_running_sum_reaches_the_level(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    likely = torch.randn(9, count, generator=generator, dtype=torch.float64).mul(3).softmax(-1)
    levels = torch.rand(9, generator=generator, dtype=torch.float64)
    levels[0], levels[1] = 0.0, 1.0
    drawn = draw(likely, levels)
    running = likely.cumsum(-1)
    assert ((drawn >= 0) & (drawn < count)).all()
    upper = running.gather(1, drawn[:, None])[:, 0]
    lower = upper - likely.gather(1, drawn[:, None])[:, 0]
    assert (lower <= levels + 1e-12).all() and (levels <= upper + 1e-12).all()


def test_a_draw_in_float32_from_a_large_vocabulary_is_that_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    likely = torch.randn(64, 128_256, generator=generator).mul(3).softmax(-1)
    levels = torch.rand(64, generator=generator)
    drawn = draw(likely, levels)
    assert (drawn == draw(likely.double(), levels.double())).float().mean() > 0.95  # but for rounding at a border
    assert (likely.gather(1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize("model_type", ["llama", "openai-gpt"])
def test_every_token_is_drawn_after_the_whole_text(model_type: str) -> None:
    model, tokenizer = tiny_model(tiny_config(model_type)), tiny_tokenizer()
    generator = torch.Generator().manual_seed(5)
    expected = torch.full((6, 1), tokenizer.bos_token_id)
    with torch.no_grad():
        while expected.shape[1] < 12:
            likely = model(input_ids=expected).logits[:, -1].softmax(-1).cumsum(-1)
            level = torch.rand(6, 1, generator=generator) * likely[:, -1:]
            expected = torch.cat([expected, torch.searchsorted(likely, level)], dim=1)
    assert not (expected == tokenizer.eos_token_id).any()  # after which a new text would begin
    assert torch.equal(sample_text(model, tokenizer, 12, 6, seed=5).input_ids, expected)


@pytest.mark.parametrize("model_type", ["llama", "openai-gpt"])
def test_mean_nll_is_that_of_a_plain_forward_pass(model_type: str) -> None:
    model, tokenizer = tiny_model(tiny_config(model_type)), tiny_tokenizer()
    for temperature in (1.0, 0.5):
        drawn = sample_text(model, tokenizer, 12, 10, seed=3, batch_size=4, temperature=temperature)
        with torch.no_grad():
            logits = model(input_ids=drawn.input_ids).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), drawn.input_ids[:, 1:].flatten(), reduction="none"
        )
        torch.testing.assert_close(drawn.mean_nll, expected.view(10, 11).double().mean(1), atol=1e-5, rtol=1e-5)


def test_sampling_starts_at_a_users_turn_and_restarts_after_the_end() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    tokenizer = type(tokenizer).from_pretrained(_saved(tokenizer))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    windows = sample_text(model, tokenizer, 10, 4, seed=0).input_ids
    assert tokenizer.decode(windows[1][:6]) == "<user>"
    assert windows[2, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        model.lm_head.weight.zero_()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert sample_text(model, tokenizer, 4, 1, seed=0).input_ids.shape == (1, 4)


def _saved(tokenizer: object) -> str:
    import tempfile

    folder = tempfile.mkdtemp()
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def test_a_tokenizer_without_a_start_token() -> None:
    tokenizer = type(tiny_tokenizer()).from_pretrained(_saved(tiny_tokenizer()))
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither a beginning- nor an end-of-text token"):
        sample_text(tiny_model(tiny_config("llama")), tokenizer, 4, 1, seed=0)


def test_as_many_windows_as_fit_give_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    plain = sample_text(model, tokenizer, 12, 10, seed=3, batch_size=4)
    ran: list[int] = []

    def check(_: object, args: tuple[object, ...], kwargs: dict[str, torch.Tensor]) -> None:
        ran.append(len(kwargs["input_ids"]))
        if ran[-1] > 2 and len(ran) > 3:  # within a window
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    short = sample_text(model, tokenizer, 12, 10, seed=3, batch_size=4)
    handle.remove()
    assert ran[:5] == [1, 4, 4, 4, 2]  # one token first: it shows which cache the class makes
    monkeypatch.setattr(micro_batch, "is_measured", lambda device: True)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(micro_batch, "_start_measuring", lambda device: 0)
    monkeypatch.setattr(micro_batch, "_most_taken", lambda device: 10**6)
    grown = sample_text(model, tokenizer, 12, 10, seed=3, batch_size=4)
    for found in (short, grown):
        assert torch.equal(found.input_ids, plain.input_ids)
        torch.testing.assert_close(found.mean_nll, plain.mean_nll, atol=1e-5, rtol=1e-5)


def test_a_text_that_ends_is_followed_by_another() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    often = 5.0 * torch.nn.functional.one_hot(torch.tensor(tokenizer.eos_token_id), VOCAB)
    model.lm_head.register_forward_hook(lambda _, __, logits: logits + often)
    windows = sample_text(model, tokenizer, 40, 8, seed=3).input_ids
    ends = (windows[:, :-1] == tokenizer.eos_token_id).nonzero()
    assert len(ends) > 8
    assert all(windows[row, at + 1] == tokenizer.bos_token_id for row, at in ends.tolist())


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "NaN|infinite values")])
def test_a_model_that_is_not_finite_is_found_within_a_few_tokens(value: float, kind: str) -> None:
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(NotFiniteError, match=f"the model gives ({kind}) on the text that it samples itself, first in"):
        sample_text(model, tiny_tokenizer(), 40, 2, seed=0)


@pytest.mark.parametrize(("model_type", "variant"), PROOF_CASES)
def test_the_likelihood_is_that_of_one_pass_over_the_text(model_type: str, variant: int) -> None:
    model = tiny_model(tiny_config(model_type, variant))
    found = sample_text(model, tiny_tokenizer(), 14, 4, seed=0)
    with torch.no_grad():
        logits = model(input_ids=found.input_ids, use_cache=False).logits[:, :-1].float()
    following = found.input_ids[:, 1:].flatten()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), following, reduction="none")
    torch.testing.assert_close(found.mean_nll.float(), nll.view(4, -1).mean(1), atol=1e-3, rtol=1e-4)
