"""Generation configs: what is written can be read and saved by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from optimum_ishrink.checkpoint.generation import (
    check_generation_config,
    drop_idle_flags,
    mend_generation_config,
)
from optimum_ishrink.errors import SourceError

IDLE = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}
FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.floats(0.1, 2),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(1, 100),
        "min_p": st.floats(0, 1),
        "length_penalty": st.floats(0.5, 2),
        "early_stopping": st.booleans(),
        "num_beams": st.integers(1, 4),
        "pad_token_id": st.integers(-1, 5),
        "output_scores": st.booleans(),
        "max_length": st.integers(1, 4096),
    },
)


@given(FLAGS)
def test_what_is_left_validates_and_nothing_else_is_taken_out(
    tmp_path_factory: pytest.TempPathFactory, flags: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("g") / "generation_config.json"
    path.write_text(json.dumps(flags))
    mended, dropped = mend_generation_config(path)
    GenerationConfig.from_dict(dict(mended)).validate(strict=True)
    assert mended == {key: value for key, value in flags.items() if key not in dropped}
    for flag in dropped:
        with pytest.raises(ValueError, match=flag):
            GenerationConfig.from_dict(dict(flags)).validate(strict=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is not a JSON object; mend it, or remove it"),
        ("{", "is not JSON"),
        ('{"max_new_tokens": 0}', r"transformers refuses .*generation_config.json \(`max_new_tokens` must be"),
        ('{"temperature": "warm", "do_sample": true, "early_stopping": 3}', "transformers refuses"),
    ],
)
def test_what_cannot_be_mended_is_refused(tmp_path: Path, text: str, message: str) -> None:
    check_generation_config(tmp_path)  # none is fine
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        check_generation_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_loaded_config_can_be_saved(tmp_path: Path) -> None:
    config = GenerationConfig(**IDLE)
    drop_idle_flags(config)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert "temperature" not in saved
    assert saved["eos_token_id"] == 2
