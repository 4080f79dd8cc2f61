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
    ],
)
def test_invalid_descriptions_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = json.loads((Path(describe.__code__.co_filename).parent / "llama.json").read_text())
    data.update(change)
    (tmp_path / "x.json").write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    with pytest.raises(ArchitectureError, match=message):
        Description.from_json(tmp_path / "x.json")
