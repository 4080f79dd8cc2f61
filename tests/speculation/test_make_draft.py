"""Drafts from the request to the output folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.errors import DataError, ShapeError
from optimum_ishrink.report.draft import DRAFT_FILE, Divergent, DraftRecord
from optimum_ishrink.report.draft_tables import DRAFT_HEADER, draft_rows, draft_sentences
from optimum_ishrink.speculation.formula import Policy
from optimum_ishrink.speculation.make_draft import work_folder
from optimum_ishrink.speculation.options import DraftOptions
from optimum_ishrink.speculation.shapes_tried import DraftMaker, shapes_to_try
from tests.helpers.refusals import refusal
from tests.helpers.tiny import edit_json, save_tiny, tiny_config

SMALL = {"draft_prompts": 2, "prompt_length": 8, "new_tokens": 16, "rounds": 1}


@pytest.fixture
def how(text_file: Path) -> dict[str, Any]:
    """Settings that take a second on a tiny model."""
    return {
        **SMALL,
        "draft_text": (str(text_file),),
        "calibration": (str(text_file),),
        "calibration_samples": 4,
        "calibration_length": 16,
        "importance": "l2-norm",
        "layer_importance": "l2-norm",
    }


@pytest.fixture(scope="module")
def shrinker(llama_folder: Path) -> IShrinker:
    return IShrinker.from_pretrained(llama_folder, dtype="float32", device="cpu")


def test_a_draft_is_made_recovered_measured_and_written(
    shrinker: IShrinker, how: dict[str, Any], text_file: Path, tmp_path: Path
) -> None:
    trained = {"recovery": "kl", "recovery_data": (str(text_file),), "recovery_tokens": 200, "recovery_length": 16}
    output = tmp_path / "draft"
    found = shrinker.draft(save_directory=output, draft_layers=(2, 3), candidates=1, **how, **trained)
    assert {each.name for each in found.tried} == {
        "2 layers",
        "3 layers",
        "2 layers, 12 neurons",
        "3 layers, 12 neurons",
    }
    best = found.best_draft
    assert best.recovered and best.made and best.timing is not None
    assert [each.timing is None for each in found.tried] == [False, True, True, True]
    assert best.timing.identical == best.timing.prompts == 2
    assert DraftRecord.read(output) == found
    assert not work_folder(output).exists()
    model = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    assert model.config.num_hidden_layers == best.shape["num_hidden_layers"]
    assert model.generation_config.num_assistant_tokens == best.known.num_assistant_tokens
    assert model.generation_config.assistant_confidence_threshold == best.known.confidence_threshold
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "## As a draft" in card and "assistant_model=draft" in card
    assert draft_sentences(found)[2] in card


def test_an_interrupted_run_uses_what_it_made(
    shrinker: IShrinker, how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "draft"
    monkeypatch.setattr("optimum_ishrink.speculation.on_pytorch.measure_together", _interrupt)
    with pytest.raises(KeyboardInterrupt, match="what was made is in .*draft.partial; run the same command again"):
        shrinker.draft(save_directory=output, draft_layers=(2,), draft_intermediate_size=(24,), **how)
    monkeypatch.undo()
    monkeypatch.setattr("optimum_ishrink.speculation.shapes_tried.run", None)  # nothing is cut again
    found = shrinker.draft(save_directory=output, draft_layers=(2,), draft_intermediate_size=(24,), **how)
    assert found.best == "2 layers"


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_early_exits_and_named_models_are_measured_alone(
    shrinker: IShrinker, how: dict[str, Any], llama_folder: Path, tmp_path: Path
) -> None:
    only = {name: how[name] for name in (*SMALL, "draft_text")}
    found = shrinker.draft(early_exit=(3,), **only)
    assert found.best == "exit after 3 layers"
    assert not found.best_draft.made
    output = tmp_path / "measured"
    found = shrinker.draft(draft_model=(str(llama_folder),), save_directory=output, **only)
    assert [path.name for path in output.iterdir()] == [DRAFT_FILE]
    timing = found.best_draft.timing
    assert timing is not None
    assert timing.acceptance == 1
    assert found.best_draft.known.agreement == 1
    assert len(DRAFT_HEADER) == len(draft_rows(found)[0])
    assert "token by token, after all 2 prompts" in draft_sentences(found)[2]
    other = replace(timing, identical=1, divergent=(Divergent(0, 3, 0.01),))
    again = replace(found, tried=(replace(found.best_draft, timing=other),))
    assert "after 1 of 2 prompts" in draft_sentences(again)[2]
    assert "two logits are at most 0.01 apart in one pass" in draft_sentences(again)[2]
    equal = replace(timing, identical=1, divergent=(Divergent(0, 3, 0.0),))
    again = replace(found, tried=(replace(found.best_draft, timing=equal),))
    assert "two logits are equal in one pass" in draft_sentences(again)[2]
    assert found.best_draft.speedup == timing.speed.ratio
    assert replace(found.best_draft, timing=None).speedup == found.best_draft.expected.speedup


def test_a_target_out_of_reach_names_the_nearest_and_writes_nothing(
    shrinker: IShrinker, how: dict[str, Any], tmp_path: Path
) -> None:
    more = {**how, "draft_layers": (3,), "draft_intermediate_size": (24,)}
    with pytest.raises(
        ShapeError, match=r"no draft reaches decode=\+9000% \(x91.00\) here: the nearest, 3 layers, deco"
    ):
        shrinker.draft(save_directory=tmp_path / "draft", target="decode=+9000%", **more)
    assert not (tmp_path / "draft").exists()


def test_the_shapes_that_are_tried_by_default() -> None:
    base = {"num_hidden_layers": 30, "intermediate_size": 1536, "num_key_value_heads": 3}
    shapes = shapes_to_try(base, DraftOptions())
    assert shapes[:3] == [
        {"num_hidden_layers": 5},
        {"num_hidden_layers": 5, "intermediate_size": 768},
        {"num_hidden_layers": 10},
    ]
    assert len(shapes) == 8
    assert shapes_to_try({"num_hidden_layers": 4}, DraftOptions()) == [{"num_hidden_layers": n} for n in (1, 2, 3)]


def test_few_layers_are_protected_where_a_draft_has_few() -> None:
    binding = SimpleNamespace(shape={"num_hidden_layers": 30}, first_layers=0)
    maker = SimpleNamespace(config=IShrinkConfig(), session=SimpleNamespace(source=SimpleNamespace(binding=binding)))

    def protected(**shape: int) -> tuple[int | None, int | None]:
        config = DraftMaker._protecting(maker, shape)  # type: ignore[arg-type]
        return config.keep_first_layers, config.keep_last_layers

    assert protected(num_hidden_layers=10) == protected(intermediate_size=9) == (None, None)
    assert [protected(num_hidden_layers=n) for n in (5, 2, 1)] == [(2, 2), (1, 1), (0, 1)]
    maker.config = IShrinkConfig(keep_first_layers=1)
    assert protected(num_hidden_layers=2) == (1, None)


def _refused(shrinker: IShrinker, message: str, **changes: Any) -> None:
    with pytest.raises(RequestError, match=message):
        shrinker.draft(**changes)


def test_requests_that_are_refused(
    shrinker: IShrinker, how: dict[str, Any], llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = {"save_directory": tmp_path / "out", **how}
    _refused(shrinker, "name the output folder that the draft is written to")
    _refused(shrinker, "vocab_size changes it; leave it out: .*universal assisted decoding", vocab_size=280, **out)
    _refused(shrinker, "num_hidden_layers=9 is larger than the base's 4", draft_layers=(9,), **out)
    _refused(shrinker, "after 4 layers is not within this model of 4", early_exit=(4,))
    _refused(shrinker, "both name what drafts; give one", early_exit=(1,), draft_model=("x",))
    _refused(shrinker, "make nothing; leave them out", early_exit=(1,), draft_layers=(1,))
    _refused(shrinker, "--quantization belongs to --runtime llama.cpp", quantization="q8_0")
    _refused(shrinker, "llama.cpp has no early exit", early_exit=(1,), runtime="llama.cpp")
    _refused(shrinker, "--draft-dtype belongs to --runtime pytorch", draft_dtype="bfloat16", runtime="llama.cpp")
    _refused(shrinker, "an early exit runs in the model's own dtype", early_exit=(1,), draft_dtype="bfloat16")
    _refused(shrinker, "such as decode=\\+30%, not 'bytes=-30%'", target="bytes=-30%")
    _refused(shrinker, "prompt_length=2064 is more than", prompt_length=2000, **{"early_exit": (1,)})
    _refused(shrinker, "two of the drafts have one name", draft_model=(str(llama_folder), str(llama_folder)))
    with pytest.raises(DataError, match="--draft-text cannot be 'self'"):
        shrinker.draft(early_exit=(1,), draft_text=("self",))
    monkeypatch.setattr("optimum_ishrink.speculation.make_draft.process_count", lambda: 2)
    _refused(shrinker, "drafts are made and timed in one process", early_exit=(1,))
    assert not any(tmp_path.iterdir())
    with pytest.raises(RequestError, match="the width of the MLP, which this architecture does not count"):
        shapes_to_try({"num_hidden_layers": 4}, DraftOptions(draft_intermediate_size=(3,)))


def test_a_draft_with_another_tokenizer_is_refused(shrinker: IShrinker, tmp_path: Path) -> None:
    larger = save_tiny(tmp_path / "larger", tiny_config("llama", vocab_size=310))
    _refused(shrinker, "larger cannot draft: it has 310 tokens, and .* 300; .*universal", draft_model=(str(larger),))
    other = save_tiny(tmp_path / "other", tiny_config("llama"))
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace('"a":', '"aa":'), encoding="utf-8")
    _refused(shrinker, "other cannot draft: it has another tokenizer .* in the token 'a'", draft_model=(str(other),))


def test_classes_that_keep_no_cache_are_refused(shrinker: IShrinker, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "first-gpt", tiny_config("openai-gpt"))
    _refused(shrinker, r"first-gpt cannot draft: its class \(openai-gpt\) keeps no key", draft_model=(str(folder),))
    base = IShrinker.from_pretrained(folder, dtype="float32", device="cpu")
    _refused(base, r"does not draft for .*first-gpt \(openai-gpt\): its class keeps no key-value", early_exit=(1,))


def test_a_base_that_cannot_take_tokens_back_is_refused(how: dict[str, Any], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("jamba"))
    shrinker = IShrinker.from_pretrained(folder, dtype="float32", device="cpu")
    only = {name: how[name] for name in (*SMALL, "draft_text")}
    with pytest.raises(RequestError, match="transformers does not draft for .*jamba.* take back rejected tok"):
        shrinker.draft(draft_model=(str(folder),), **only)


def test_the_verb_prints_a_table_and_what_follows(
    llama_folder: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from optimum_ishrink.cli.program import main

    words = ["draft", "--model", str(llama_folder), "--early-exit", "2", "--draft-text", str(text_file)]
    words += ["--dtype", "float32", "--device", "cpu", "--draft-prompts", "2", "--prompt-length", "8"]
    words += ["--new-tokens", "16", "--rounds", "1"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "exit after 2 layers" in shown and "Under greedy decoding the output is the base's" in shown
    output = tmp_path / "out"
    assert main([*words, "--json", "--output", str(output)]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == "exit after 2 layers"
    assert "is not within this model of 4" in refusal([*words[:4], "7"], capsys)


def test_shapes_that_a_model_cannot_have_are_noted_and_passed_over(
    shrinker: IShrinker, how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum_ishrink.speculation.shapes_tried import Candidate, DraftMaker

    cut = DraftMaker.cut

    def picky(self: DraftMaker, shape: dict[str, int]) -> Candidate:
        if shape["num_hidden_layers"] < 3:
            raise ShapeError("too shallow")
        return cut(self, shape)

    monkeypatch.setattr(DraftMaker, "cut", picky)
    more = {**how, "draft_intermediate_size": (24,)}
    found = shrinker.draft(save_directory=tmp_path / "draft", **more)
    assert [each.name for each in found.tried] == ["3 layers"]
    with pytest.raises(ShapeError, match="too shallow"):
        shrinker.draft(save_directory=tmp_path / "other", draft_layers=(2,), **more)
    monkeypatch.setattr(DraftMaker, "cut", lambda *_: (_ for _ in ()).throw(ShapeError("none")))
    with pytest.raises(ShapeError, match="none"):
        shrinker.draft(save_directory=tmp_path / "other", **more)


def test_a_record_of_another_version(tmp_path: Path) -> None:
    from optimum_ishrink.errors import SourceError

    (tmp_path / DRAFT_FILE).write_text('{"schema": 9}', encoding="utf-8")
    with pytest.raises(SourceError, match="is of another version"):
        DraftRecord.read(tmp_path)


def test_how_long_it_drafts_is_written_where_no_generation_config_is(shrinker: IShrinker, tmp_path: Path) -> None:
    from optimum_ishrink.speculation.assisted import set_policy
    from optimum_ishrink.speculation.formula import StepCosts
    from optimum_ishrink.speculation.make_draft import expectation
    from optimum_ishrink.speculation.own_text import Choices
    from optimum_ishrink.speculation.written_draft import set_drafting

    known = expectation([Choices((True,) * 12, (1.0,) * 12)], StepCosts(0.1, {1: 1.0}))
    set_drafting(tmp_path, known)
    edit_json(tmp_path / "generation_config.json", do_sample=False)
    model = AutoModelForCausalLM.from_pretrained(shrinker.source.folder)
    set_policy(model, Policy(known.num_assistant_tokens))
    written = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert written["num_assistant_tokens"] == model.generation_config.num_assistant_tokens == 12
