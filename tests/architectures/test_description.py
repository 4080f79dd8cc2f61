from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.architectures.description import Description, describe, descriptions
from optimum_ishrink.errors import ArchitectureError
from tests.helpers.tiny import CASES


def test_every_description_has_a_tiny_model_to_prove_it() -> None:
    assert set(descriptions()) == {model_type for model_type, _ in CASES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor": {}}, "unknown entry 'tensor'"),
        ({"dimensions": {}}, "dimensions must be exactly"),
        ({"tensors": {"w": "a+b"}}, "neither a size"),
        ({"sizes": None}, "entry 'sizes' is missing"),
        ({"variants": [{"sizes": {}}]}, "entry 'when' is missing"),
        ({"variants": [{"when": "x", "dimensions": {"vocab_size": None, "ffn": {}}}]}, "json is not.*must be exactly"),
        ({"variants": [{"when": "x", "tensor": {}}]}, "unknown entry 'tensor'"),
    ],
)
def test_invalid_descriptions_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = json.loads((Path(describe.__code__.co_filename).parent / "llama.json").read_text())
    data.update(change)
    (tmp_path / "x.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    with pytest.raises(ArchitectureError, match=message):
        Description.from_json(tmp_path / "x.json")


def test_a_variant_is_the_family_with_its_own_entries() -> None:
    family = describe("granitemoehybrid")
    dense = family.for_config({"num_local_experts": 0}.get)
    assert family.for_config({"num_local_experts": 8}.get) is family
    assert (family.sizes["ffn"], dense.sizes["ffn"]) == ("intermediate_size", "shared_intermediate_size")
    assert "experts" not in dense.sizes and dense.dimensions["num_experts"].fixed == "the model has no experts"
    assert dense.dimensions["intermediate_size"].writes == {"shared_intermediate_size": "ffn"}
    assert dense.dimensions["vocab_size"] == family.dimensions["vocab_size"]
    assert not any("block_sparse_moe" in name for name in dense.tensors)
    assert (dense.rules, dense.memory) == ((), {})
