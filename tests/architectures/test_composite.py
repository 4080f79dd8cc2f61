"""What is said of models of several parts, and which of them are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from optimum_ishrink import IShrinker
from optimum_ishrink.architectures.composite import Composite, composite_of, composites, text_values, with_text_values
from optimum_ishrink.architectures.config_edit import changed_keys, with_changes
from optimum_ishrink.architectures.model_class import bind_config, parse_config
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import ArchitectureError, RequestError, ShapeError, SourceError
from tests.helpers.tiny import edit_json, tiny_tokenizer
from tests.helpers.tiny_composites import COMPOSITES, IMAGE, composite_config, composite_model, save_composite


def raw_config(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**composite_config(model_type).to_dict(), **changes}


def test_every_composite_is_tested_or_refused() -> None:
    refused = {name for name, each in composites().items() if each.refused is not None}
    assert set(composites()) - refused == {*COMPOSITES}
    assert all(COMPOSITES.values()) and all(composites()[name].prefixes for name in COMPOSITES)


def test_a_text_part_without_a_description_is_refused() -> None:
    raw = raw_config("llava", text_config={"model_type": "xlnet"})
    with pytest.raises(
        ArchitectureError, match=r"the text part of 'llava' is of type 'xlnet', which is not described"
    ):
        parse_config(raw)


def test_a_model_whose_image_features_enter_by_other_layers_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"'mllama' cannot be cut: .*cross-attention.*; shrink a model of"):
        composite_of({"model_type": "mllama", "text_config": {}})


def test_remote_code_is_refused() -> None:
    raw = {"model_type": "internvl_chat", "auto_map": {"AutoModel": "x.Y"}, "vision_config": {}}
    with pytest.raises(ArchitectureError, match="'internvl_chat' needs remote code, which is never run"):
        parse_config(raw)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"model_type": "x"}, "entry 'models' is missing"),
        ({"model_type": "x", "models": "", "prefix": {}}, "unknown entry 'prefix' .did you mean 'prefixes'"),
        ({"model_type": "x", "models": "", "first_layers": {"count": 1}}, "count"),
    ],
)
def test_a_damaged_description(data: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ArchitectureError, match=rf"x.json is not the description of a composite: .*{reason}"):
        Composite.from_json(path)


def test_text_values_are_read_and_written_where_the_config_has_them() -> None:
    plain = {"model_type": "llama", "vocab_size": 3}
    assert text_values(plain) == plain
    assert with_text_values(plain, {"vocab_size": 2}) == {**plain, "vocab_size": 2}
    nested = {"model_type": "paligemma", "vocab_size": 3, "text_config": {"vocab_size": 3, "hidden_size": 4}}
    assert text_values(nested) == {"vocab_size": 3, "hidden_size": 4}
    edited = with_text_values(nested, {"vocab_size": 2, "num_hidden_layers": 1})
    assert edited["vocab_size"] == 2 and "num_hidden_layers" not in edited
    assert edited["text_config"] == {"vocab_size": 2, "hidden_size": 4, "num_hidden_layers": 1}
    assert nested["text_config"] == {"vocab_size": 3, "hidden_size": 4}
    changes = changed_keys(nested, edited)
    assert changes == {
        "vocab_size": (3, 2),
        "text_config.vocab_size": (3, 2),
        "text_config.num_hidden_layers": (None, 1),
    }
    assert with_changes(nested, changes) == edited


def test_the_tensors_of_the_other_parts_are_bound_as_they_are() -> None:
    _, binding = bind_config(raw_config("llava"))
    tower = {name: bound for name, bound in binding.tensors.items() if "vision_tower" in name or "projector" in name}
    assert len(tower) > 30
    assert all(bound.layer is None and not bound.counts("hidden") for bound in tower.values())
    smaller = {"num_hidden_layers": 1, "num_key_value_heads": 1, "intermediate_size": 1}
    whole = sum(p.numel() for p in composite_model(composite_config("llava")).parameters())
    assert whole == binding.num_parameters() > binding.num_parameters(smaller)


def test_a_flat_config_is_read_and_written_flat(tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config("qwen2_vl"))
    raw = json.loads((folder / "config.json").read_text())
    inner = {key: value for key, value in raw.pop("text_config").items() if key not in ("model_type", "dtype")}
    (folder / "config.json").write_text(json.dumps({**inner, **raw}))
    source = open_source(folder)
    source.check()
    result = IShrinker.from_pretrained(folder).shrink(
        num_hidden_layers=3,
        importance="l2-norm",
        layer_importance="l2-norm",
        compensation="none",
        evaluate=False,
        benchmark=False,
        save_directory=tmp_path / "cut",
    )
    assert result.plan.config_changes["num_hidden_layers"] == (4, 3)
    written = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert written["num_hidden_layers"] == 3 and "text_config" not in written
    assert result.model.config.text_config.num_hidden_layers == 3


def test_files_of_every_convention_of_names_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composite_config("llava")
    folder = save_composite(tmp_path / "base", config)
    original = load_file(folder / "model.safetensors")
    newer = composite_model(config).state_dict()
    older = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in original.items()}
    expected = open_source(folder).tensors.keys()
    for state in (newer, older):
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        source = open_source(folder)
        assert source.tensors.keys() == expected
        assert {info.stored_as for info in source.tensors.values()} == state.keys()
    state["extra"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="holds 1 tensors that its config does not expect: extra"):
        open_source(folder).tensors  # noqa: B018
    # What the class leaves out when it is loaded, such as a head that drafts tokens, is left out.
    monkeypatch.setattr(LlavaForConditionalGeneration, "_keys_to_ignore_on_load_unexpected", ["^extra"])
    assert open_source(folder).tensors.keys() == expected


def test_first_layers_that_image_features_are_added_to_stay(tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config("qwen3_vl"))
    shrinker = IShrinker.from_pretrained(folder)
    how = {"importance": "l2-norm", "layer_importance": "l2-norm", "keep_first_layers": 0, "keep_last_layers": 0}
    assert shrinker.plan(num_hidden_layers=2, **how).layers == (0, 1)
    reason = r"the first 2 layers always stay: image features of the vision tower are added"
    with pytest.raises(ShapeError, match=rf"num_hidden_layers=1 is fewer than the 2 first .*{reason}"):
        shrinker.plan(num_hidden_layers=1, **how)
    with pytest.raises(ShapeError, match=rf"keep_first_layers=2 and keep_last_layers=3 protect more .*{reason}"):
        shrinker.plan(num_hidden_layers=3, **{**how, "keep_last_layers": 3})
    with pytest.raises(ShapeError, match=rf"leave none of 4 layers to remove; .*{reason}"):
        shrinker.plan(target="params=-1%", prune=["num_hidden_layers"], **{**how, "keep_last_layers": 2})


def test_what_takes_a_text_decoder_alone_says_so(tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config("smolvlm"))
    shrinker = IShrinker.from_pretrained(folder)
    for refused, what in (
        (lambda: shrinker.export(tmp_path / "x.gguf"), "an export"),
        (lambda: shrinker.search(target="bytes=1MB", save_directory=tmp_path / "found"), "a search"),
        (lambda: shrinker.profile(output=tmp_path / "p.json"), "a profile"),
        (lambda: shrinker.advise(target="bytes=1MB"), "advice"),
    ):
        with pytest.raises(RequestError, match=rf"{what} takes a text decoder alone, and base \(smolvlm\) has other"):
            refused()


def test_a_model_in_memory_has_no_processor_files() -> None:
    with pytest.raises(SourceError, match="has other parts than its text decoder.*give the Hub id or the folder"):
        IShrinker.from_pretrained(composite_model(composite_config("llava")), tokenizer=tiny_tokenizer())


def test_a_padding_token_outside_the_embedding_is_named(tmp_path: Path) -> None:
    folder = save_composite(tmp_path / "base", composite_config("idefics3"))
    raw = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", text_config={**raw["text_config"], "pad_token_id": IMAGE + 1})
    with pytest.raises(SourceError, match="names pad_token_id=300, but the model has 300 embeddings"):
        open_source(folder).check()
