"""Cutting the vocabulary: alone, and before layers and neurons are cut."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.api.result import ShrinkResult
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import DataError, RequestError, ShapeError, SourceError
from optimum_ishrink.pipeline.trimming import find_vocabulary
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.run import Run
from optimum_ishrink.vocabulary import languages
from tests.helpers.tiny import edit_json
from tests.helpers.trained_vocabulary import END, ROWS, TOKENS, save_trained, trained_tokenizer

TEXT = "The import statement imports a module, and the class is defined in it."
MESSAGES = [{"role": "user", "content": "What is a class?"}]


@pytest.fixture(scope="module", autouse=True)
def few_words() -> Any:
    """Count the most frequent words alone: all of them take seconds."""
    whole = languages.words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(languages, "words", lambda language: dict(islice(whole(language).items(), 2_000)))
        yield


def shrink(folder: Path, output: Path, quick: dict[str, Any], **changes: Any) -> ShrinkResult:
    values = {**quick, "evaluate": False, "benchmark": False, **changes}
    return IShrinker.from_pretrained(folder).shrink(IShrinkConfig(**values), save_directory=output)


def check_plan(folder: Path, base: Path) -> Plan:
    """Check that a plan counts what is in the files, and that it makes the base's config the written one."""
    plan = Run.read(folder).plan
    assert plan is not None
    tensors = load_file(folder / "model.safetensors")
    assert plan.new_num_parameters == sum(tensor.numel() for tensor in tensors.values())
    before, after = read_json(base / "config.json"), read_json(folder / "config.json")
    changed = {
        key: [before.get(key), after.get(key)] for key in {**before, **after} if before.get(key) != after.get(key)
    }
    assert {key: list(values) for key, values in plan.config_changes.items()} == changed
    return plan


@pytest.fixture(scope="module")
def rows_alone(worded_folder: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("rows") / "alone"
    shrink(worded_folder, output, quick, vocab_size=960, evaluate=True, benchmark=True)
    return output


def test_rows_alone_are_those_of_the_base(worded_folder: Path, rows_alone: Path) -> None:
    plan = check_plan(rows_alone, worded_folder)
    assert plan.vocabulary is not None
    rows = list(plan.vocabulary.rows)
    assert len(rows) == plan.new_shape["vocab_size"] == 960 and plan.shape["vocab_size"] == ROWS
    assert {key for key in plan.shape if plan.shape[key] != plan.new_shape[key]} == {"vocab_size"}
    assert plan.units == {} and plan.choice.calibration is None and plan.choice.importance is None
    before, after = load_file(worded_folder / "model.safetensors"), load_file(rows_alone / "model.safetensors")
    for name, tensor in before.items():
        counted = name in ("model.embed_tokens.weight", "lm_head.weight")
        assert torch.equal(after[name], tensor[rows] if counted else tensor)


def test_the_tokenizer_is_renumbered(worded_folder: Path, rows_alone: Path) -> None:
    plan = Run.read(rows_alone).plan
    assert plan is not None and plan.vocabulary is not None
    rows = plan.vocabulary.rows
    base, cut = AutoTokenizer.from_pretrained(worded_folder), AutoTokenizer.from_pretrained(rows_alone)
    assert cut.get_vocab() == {
        token: rows.index(number) for token, number in base.get_vocab().items() if number in {*rows}
    }
    assert cut.decode(cut(TEXT)["input_ids"]) == TEXT
    assert cut.eos_token_id == cut.convert_tokens_to_ids(END) == rows.index(TOKENS - 1)
    for name in ("config.json", "generation_config.json"):
        assert read_json(rows_alone / name)["eos_token_id"] == cut.eos_token_id
        assert read_json(rows_alone / name)["bos_token_id"] == 1


def test_generation_ends_at_the_end_token(rows_alone: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(rows_alone), AutoModelForCausalLM.from_pretrained(rows_alone)
    inputs = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(written) == END


def test_the_card_says_what_went(rows_alone: Path) -> None:
    card = (rows_alone / "README.md").read_text()
    assert f"960 of {TOKENS:,} stay, {TOKENS - 960} go" in card
    assert "words.txt" in card and "--vocab-size 960" in card


def test_the_same_seed_gives_the_same_plan_and_plan_the_same_as_shrink(
    worded_folder: Path, rows_alone: Path, quick: dict[str, Any]
) -> None:
    config = IShrinkConfig(**quick, vocab_size=960)
    assert IShrinker.from_pretrained(worded_folder).plan(config) == Run.read(rows_alone).plan
    assert IShrinker.from_pretrained(worded_folder).resolve_shape(config)["vocab_size"] == 960


def test_an_output_is_cut_again(worded_folder: Path, rows_alone: Path, quick: dict[str, Any], tmp_path: Path) -> None:
    shrink(rows_alone, tmp_path / "again", quick, vocab_size=832)
    plan = check_plan(tmp_path / "again", rows_alone)
    assert plan.shape["vocab_size"] == 960 and plan.new_shape["vocab_size"] == 832
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert {*tokenizer.get_vocab()} < {*AutoTokenizer.from_pretrained(rows_alone).get_vocab()}
    shrink(rows_alone, tmp_path / "layers", quick, num_hidden_layers=3)
    assert check_plan(tmp_path / "layers", rows_alone).vocabulary is None


@pytest.mark.parametrize("model_type", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_rows_are_cut_with_layers_heads_and_neurons(quick: dict[str, Any], tmp_path: Path, model_type: str) -> None:
    base = save_trained(
        tmp_path / "base", model_type, **({"n_inner": 24, "head_dim": None} if model_type == "gpt2" else {})
    )
    shape: dict[str, Any] = {"vocab_size": 1024, "num_hidden_layers": 3, "intermediate_size": 16}
    if model_type == "llama":
        shape["num_key_value_heads"] = 2
    result = shrink(base, tmp_path / "cut", quick, **shape, sample_new_tokens=0)
    plan = check_plan(tmp_path / "cut", base)
    assert plan == result.plan and {key: plan.new_shape[key] for key in shape} == shape
    assert plan.vocabulary is not None and len(plan.vocabulary.rows) == 1024
    assert plan.choice.calibration is not None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cut")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    assert ids.max() < 1024 and model(ids).logits.shape[-1] == 1024
    config = IShrinkConfig(**quick, **shape)
    assert IShrinker.from_pretrained(base).plan(config) == plan


def test_a_target_may_move_rows(worded_folder: Path, quick: dict[str, Any], tmp_path: Path) -> None:
    shrink(worded_folder, tmp_path / "rows", quick, target="params=-20%", prune=["vocab_size"], vocab_multiple=8)
    plan = check_plan(tmp_path / "rows", worded_folder)
    assert {key for key in plan.shape if plan.shape[key] != plan.new_shape[key]} == {"vocab_size"}
    assert plan.removed_share == pytest.approx(0.2, abs=0.005)
    shape = IShrinker.from_pretrained(worded_folder).resolve_shape(target="params=-15%", **quick)
    assert shape["vocab_size"] < ROWS
    kept = IShrinker.from_pretrained(worded_folder).resolve_shape(
        target="params=-15%", prune=["intermediate_size", "num_hidden_layers"], **quick
    )
    assert kept["vocab_size"] == ROWS


def test_an_output_is_recovered(
    worded_folder: Path, rows_alone: Path, text_file: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    values = {key: value for key, value in quick.items() if not key.startswith(("calibration", "eval", "benchmark"))}
    how = {"recovery_tokens": 200, "recovery_length": 16, "recovery_data": [str(text_file)]}
    config = IShrinkConfig(**values, **how, recovery="ce", evaluate=False, benchmark=False)
    IShrinker.from_pretrained(rows_alone).recover(config, save_directory=tmp_path / "recovered")
    before, after = Run.read(rows_alone), Run.read(tmp_path / "recovered")
    assert after.plan == before.plan and after.report.recovery is not None
    for name in ("tokenizer.json", "generation_config.json"):
        assert read_json(tmp_path / "recovered" / name) == read_json(rows_alone / name)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "recovered")
    assert model.get_input_embeddings().weight.shape[0] == 960


def find(folder: Path, **request: Any) -> Any:
    return find_vocabulary(open_source(folder), IShrinkConfig(**request))


def test_the_vocabulary_is_read_where_it_may_change(worded_folder: Path) -> None:
    found = find(worded_folder, vocab_size=960)
    assert found is not None
    vocabulary, choices = found
    assert (choices.total, choices.tokens, choices.multiple) == (ROWS, TOKENS, 64)
    assert 200 < choices.required["bytes"] <= 256
    assert choices.extra_tokens == vocabulary.order().extra.tolist()
    assert find(worded_folder, target="params=-15%", vocab_multiple=32)[1].multiple == 32
    assert find(worded_folder, vocab_size=ROWS) is None
    assert find(worded_folder, num_hidden_layers=3) is None
    assert find(worded_folder, target="params=-15%", prune=["num_hidden_layers"]) is None


def test_a_tokenizer_that_cannot_be_cut_leaves_a_target_the_rest(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    edit_json(folder / "tokenizer.json", model={"type": "WordPiece", "vocab": {}})
    assert find(folder, target="params=-15%") is None
    error = capsys.readouterr().err
    assert "the vocabulary stays as it is: " in error and "a WordPiece model, whose vocabulary cannot be cut" in error
    for request in ({"vocab_size": 256}, {"target": "params=-15%", "prune": ["vocab_size"]}):
        with pytest.raises(SourceError, match="a WordPiece model, whose vocabulary cannot be cut"):
            find(folder, **request)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("vocab_text", ["pydoc"]),
        ("vocab_languages", ["de"]),
        ("vocab_keep", "keep.txt"),
        ("vocab_drop_reserved", True),
    ],
)
@pytest.mark.parametrize(
    "request_",
    [{"num_hidden_layers": 3}, {"target": "params=-15%", "prune": ["num_hidden_layers"]}, {"vocab_size": ROWS}],
    ids=["layers", "a target", "its own size"],
)
def test_an_option_that_says_nothing_is_refused(
    worded_folder: Path, request_: dict[str, Any], option: str, value: Any
) -> None:
    message = f"{option} says which tokens stay, and the vocabulary does not change; add vocab_size, or a target"
    with pytest.raises(ShapeError, match=message):
        find(worded_folder, **request_, **{option: value})


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"vocab_size": 64}, ShapeError, "vocab_size=64 is fewer than the .* rows that have to stay: .* bytes"),
        ({"vocab_size": 1000}, ShapeError, "vocab_size=1000 is not a multiple of 64"),
        ({"vocab_size": 960, "vocab_languages": ["xx"]}, RequestError, "unknown language with word frequencies 'xx'"),
        ({"vocab_size": 960, "vocab_keep": "nowhere.txt"}, DataError, "text file nowhere.txt does not exist"),
        ({"vocab_size": 960, "vocab_text": ["nowhere.txt"]}, DataError, "text file nowhere.txt does not exist"),
        ({"vocab_size": ROWS + 64}, ShapeError, "vocab_size=1600 is not between 1 and the model's 1536"),
    ],
)
def test_requests_that_cannot_be_met(
    worded_folder: Path, quick: dict[str, Any], tmp_path: Path, values: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        shrink(worded_folder, tmp_path / "out", quick, **values)
    assert not any(tmp_path.iterdir())


def test_a_config_that_needs_a_removed_token_keeps_it(
    worded_folder: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(worded_folder, tmp_path / "m")
    edit_json(folder / "generation_config.json", forced_eos_token_id=1200, suppress_tokens=[1300, 1])
    shrink(folder, tmp_path / "out", quick, vocab_size=832)
    written = read_json(tmp_path / "out" / "generation_config.json")
    token = trained_tokenizer().convert_ids_to_tokens(1200)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written["forced_eos_token_id"] == tokenizer.convert_tokens_to_ids(token)
    assert 1 in written["suppress_tokens"]
