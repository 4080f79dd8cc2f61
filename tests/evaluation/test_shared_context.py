import itertools
import random
import re

import pytest
import torch
from lm_eval.models.huggingface import HFLM

from optimum_ishrink.errors import DataError, DeviceMemoryError, NotFiniteError
from optimum_ishrink.evaluation.shared_context import SharedContextLM, _batches
from tests.helpers.tiny import LAYOUTS, VARIANTS, VOCAB, in_full, tiny_config, tiny_model, tiny_tokenizer


def requests(seed=0, questions=7, longest=20):
    draw = random.Random(seed)

    def tokens(most):
        return [draw.randrange(3, VOCAB) for _ in range(draw.randint(1, most))]

    found = []
    for question in range(questions):
        context = tokens(longest)
        found += [((f"q{question}", str(choice)), context, tokens(6)) for choice in range(draw.randint(1, 4))]
    draw.shuffle(found)
    return found


def plain(model, tokenizer, asked, **settings):
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, softmax_dtype="float32", **settings)
    return lm._loglikelihood_tokens(asked, disable_tqdm=True)


@pytest.mark.parametrize("kind", in_full(sorted(VARIANTS), *LAYOUTS, "openai-gpt"))
def test_answers_are_those_of_lm_eval(kind):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_config(kind)).eval()
    asked = requests()
    ours = SharedContextLM(model, tokenizer, batch_size=1)._loglikelihood_tokens(asked)
    theirs = plain(model, tokenizer, asked)
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs], abs=1e-4)
    assert [a[1] for a in ours] == [a[1] for a in theirs]


def test_greedy_continuations_are_recognized():
    model, tokenizer = tiny_model(tiny_config("llama")).eval(), tiny_tokenizer()
    with torch.no_grad():
        context = [5, 6, 7, 8]
        for _ in range(4):
            context.append(int(model(torch.tensor([context])).logits[0, -1].argmax()))
    asked = [(None, context[:4], context[4:]), (None, context[:4], [*context[4:7], (context[7] + 1) % VOCAB])]
    answers = SharedContextLM(model, tokenizer, batch_size=1)._loglikelihood_tokens(asked)
    assert [greedy for _, greedy in answers] == [True, False]


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_batches_hold_every_request_once(budget):
    asked = requests(questions=20)
    batches = list(_batches(asked, 128, lambda: budget))
    for batch in batches:
        lengths = [len(context) for context, _ in batch]
        assert max(lengths) - min(lengths) <= 6
        assert len(batch) == 1 or len(batch) * max(lengths) <= budget
    found = sorted(
        (number, tuple(context), tuple(tokens))
        for context, shared in itertools.chain(*batches)
        for number, tokens in shared
    )
    assert found == [(i, tuple(context), tuple(tokens)) for i, (_, context, tokens) in enumerate(asked)]


def test_a_small_batch_changes_nothing():
    model, tokenizer = tiny_model(tiny_config("llama")).eval(), tiny_tokenizer()
    lm = SharedContextLM(model, tokenizer, batch_size=1)
    whole = lm._loglikelihood_tokens(requests())
    lm._micro.size = 1
    assert [a[0] for a in lm._loglikelihood_tokens(requests())] == pytest.approx([a[0] for a in whole], abs=1e-5)


def test_long_requests_lose_their_first_tokens():
    model, tokenizer = tiny_model(tiny_config("llama")).eval(), tiny_tokenizer()
    longest = model.config.max_position_embeddings
    asked = [(None, [3 + i % 200 for i in range(longest + 9)], [7] * size) for size in (1, 2, 5, longest)]
    ours = SharedContextLM(model, tokenizer, batch_size=1)._loglikelihood_tokens(asked)
    theirs = plain(model, tokenizer, asked, max_length=longest)
    # lm-eval sums 512 tokens in float32, which has steps of 2e-4 at such a sum.
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs], abs=1e-4, rel=1e-7)


def test_a_model_without_numbers_answers_nothing():
    model = tiny_model(tiny_config("llama"))
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NotFiniteError, match="the model gives NaN"):
        SharedContextLM(model, tiny_tokenizer(), batch_size=1)._loglikelihood_tokens(requests())


def test_a_token_without_an_embedding_is_named():
    model = tiny_model(tiny_config("llama"))
    with pytest.raises(DataError, match="a question has the token .* with the id 300"):
        SharedContextLM(model, tiny_tokenizer(), batch_size=1)._loglikelihood_tokens([(None, [5, VOCAB], [6])])


def test_memory_that_runs_out_changes_nothing(capsys):
    model, tokenizer = tiny_model(tiny_config("llama")).eval(), tiny_tokenizer()
    whole = SharedContextLM(model, tokenizer, batch_size=1)._loglikelihood_tokens(requests())

    def check(_, args, kwargs):
        if kwargs["input_ids"] is not None and kwargs["input_ids"].numel() > 40:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.model.register_forward_pre_hook(check, with_kwargs=True)
    short = SharedContextLM(model, tokenizer, batch_size=1)._loglikelihood_tokens(requests())
    said = re.findall(r"out of memory with (\d+) tokens at once; it goes on with (\d+)", capsys.readouterr().err)
    assert said and all(int(left) == int(tried) // 2 and int(tried) < 512 for tried, left in said)
    assert [a[0] for a in short] == pytest.approx([a[0] for a in whole], abs=1e-5)
    assert [a[1] for a in short] == [a[1] for a in whole]


def test_a_context_that_does_not_fit():
    model, tokenizer = tiny_model(tiny_config("llama")).eval(), tiny_tokenizer()

    runs = []

    def fail(*_):
        runs.append(1)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.model.register_forward_pre_hook(fail)
    message = r"evaluation ran out of memory on cpu with \d+ tokens at once, and fewer cannot be run; evaluate without"
    with pytest.raises(DeviceMemoryError, match=message):
        SharedContextLM(model, tokenizer, batch_size=256)._loglikelihood_tokens([(None, [5] * 80, [6, 7])])
    assert len(runs) == 3  # with all 80 tokens, then with 40 and 20, to read fewer continuations at once
