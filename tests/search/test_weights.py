from __future__ import annotations

import gguf
import pytest
import torch

from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.search.template import Template
from optimum_ishrink.search.weights import StoredWeights, as_stored


@pytest.mark.parametrize("name", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_weights_are_those_that_a_file_gives_back(name: str) -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    kind = gguf.GGMLQuantizationType[name.upper()]
    expected = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    found = as_stored(weight, name)
    assert torch.equal(found, torch.from_numpy(expected)) and not torch.equal(found, weight)
    assert torch.equal(as_stored(found, name), as_stored(found, name))


def test_rows_that_fit_no_block_keep_their_bits() -> None:
    weight = torch.randn(2, 48)
    assert torch.equal(as_stored(weight, "q4_0"), weight)


def test_a_model_is_as_before_afterwards(base_source: Source, base_file: Template) -> None:
    model = base_source.load_model(torch.float32, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {tensor.name: tensor.source for tensor in base_file.tensors if tensor.is_matrix}
    weights = StoredWeights(model, {name: source for name, source in names.items() if source})
    with weights.stored(dict.fromkeys(names, "q4_0")):
        changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
        assert len(changed) >= len(names)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), weights.stored(dict.fromkeys(names, "q4_0")):
        raise ZeroDivisionError
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_matrix_that_is_stored_the_other_way_round_is_quantised_along_its_inputs() -> None:
    layer = torch.nn.Linear(64, 32, bias=False)
    turned = torch.nn.Linear(32, 64, bias=False)
    turned.weight.data = layer.weight.data.T.clone()
    plain, other = StoredWeights(layer, {"a": "weight"}), StoredWeights(turned, {"a": "weight"}, ["weight"])
    assert plain.error("a", "q4_0") == pytest.approx(other.error("a", "q4_0"))
    other.store({"a": "q4_0"})
    plain.store({"a": "q4_0"})
    assert torch.equal(turned.weight.data.T, layer.weight.data)
