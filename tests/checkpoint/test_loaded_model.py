"""Objects in memory: which are taken as a model, which are unwrapped, and what the others are told."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from optimum_ishrink import IShrinker
from optimum_ishrink.api.given_model import given_model
from optimum_ishrink.checkpoint.loaded_model import check_loaded, check_name, unwrapped
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import SourceError
from tests.helpers.tiny import tiny_config, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, of torch.compile


def model() -> Any:
    return tiny_model(tiny_config("llama"))


def refused(given: Any, words: str, tokenizer: Any = None) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        IShrinker.from_pretrained(given, tokenizer=tokenizer or tiny_tokenizer())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def adapted(base: Any) -> Any:
    return get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def test_adapters_are_to_be_merged() -> None:
    base = model()
    outer = adapted(base)
    refused(outer, r"merge it first.*model.merge_and_unload\(\)")
    refused(base, "the layers of a PEFT adapter in it; merge it first")  # PEFT changed it in place
    own = model()
    own._hf_peft_config_loaded = True  # what transformers' own add_adapter sets
    refused(own, "the layers of a PEFT adapter in it")
    check_loaded(outer.merge_and_unload(), tiny_tokenizer())


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        torch.nn.DataParallel,
        lambda inner: torch.compile(torch.nn.DataParallel(inner)),
    ],
)
def test_wrappers_that_change_nothing_are_taken_off(wrap: Any) -> None:
    inner = model()
    assert unwrapped(wrap(inner)) is inner
    shrinker = IShrinker.from_pretrained(wrap(inner), tokenizer=tiny_tokenizer())
    assert shrinker.source.binding.sizes["layers"] == 4
    shrinker.source.check()


def test_other_classes_are_named() -> None:
    config = tiny_config("llama")
    refused(AutoModel.from_config(config), "LlamaModel is not a causal language model; load it as LlamaForCausalLM")
    classifier = AutoModelForSequenceClassification.from_config(config)
    refused(classifier, "LlamaForSequenceClassification is not a causal language model")
    refused(torch.nn.Sequential(model()), "Sequential is no model of transformers; give the PreTrainedModel")
    refused(type(model()), "LlamaForCausalLM is a class, not a model")
    refused(config, "a config .* holds no weights")
    refused(pipeline("text-generation", model=model(), tokenizer=tiny_tokenizer()), "tokenizer=pipeline.tokenizer")
    with torch.device("meta"):
        empty = type(model())(config)
    refused(empty, "is on the meta device; load the model")


def test_other_objects_are_named(llama_folder: Path, tmp_path: Path) -> None:
    refused(model().state_dict(), "a state dict has no config")
    refused(OrderedDict(a=torch.zeros(1)), "a state dict has no config")
    refused(None, "there is no model: it is None")
    refused(5, "an object of type int is no model")
    refused({}, "an object of type dict is no model")
    refused(tmp_path / "none", "the folder .*none does not exist; a Hub id is given as text")
    refused("", "'' is no name of a model")
    refused("a\nb", "'a b' is no name of a model")
    refused("x" * 300, "is too long for the name of a folder or a Hub id")
    refused("x" * 5000, "is no name of a model")
    refused(IShrinker.from_pretrained(llama_folder), "IShrinker is not a model to open")
    source = open_source(llama_folder)
    assert open_source(source) is source


def test_the_tokenizer_of_a_loaded_model() -> None:
    with pytest.raises(SourceError, match="a loaded model needs its tokenizer"):
        IShrinker.from_pretrained(model())
    refused(model(), "not of type str: tokenizer=AutoTokenizer.from_pretrained", "gpt2")


def test_quantised_models_are_refused() -> None:
    marked = model()
    marked.config.quantization_config = {"quant_method": "bitsandbytes"}
    refused(marked, r"the model in memory is quantised \(bitsandbytes\); load the original")
    integers = model()
    layer = integers.model.layers[0].mlp.down_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    refused(integers, r"quantised \(model.layers.0.mlp.down_proj.weight is Tensor of torch.int8\)")


@pytest.mark.parametrize("role", ["teacher", "base"])
def test_a_second_model_is_given_by_name(role: str, llama_folder: Path, tmp_path: Path) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder)
    verb = shrinker.recover if role == "teacher" else shrinker.evaluate
    with pytest.raises(SourceError, match=f"a loaded model as {role} needs its tokenizer: {role}=IShrinker"):
        verb(**{role: torch.compile(model())})
    with pytest.raises(SourceError, match=f"{role}: the model has a PEFT adapter around it"):
        verb(**{role: adapted(model())})
    with pytest.raises(SourceError, match=f"{role}: the folder .* does not exist"):
        verb(**{role: tmp_path / "none"})
    assert given_model(str(llama_folder), role) == str(llama_folder)


@given(st.one_of(st.integers(), st.floats(), st.binary(), st.lists(st.integers()), st.booleans(), st.just(object)))
def test_whatever_is_no_name_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(SourceError) as caught:
        check_name(value)
    assert "\n" not in str(caught.value)
