from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink import IShrinker
from optimum_ishrink.errors import RequestError
from tests.helpers.talkers import save_talker


def test_a_shrinker_and_its_result_answer(quick: dict[str, Any], tmp_path: Path) -> None:
    shrinker = IShrinker.from_pretrained(save_talker(tmp_path / "model"), dtype="float32", device="cpu")
    heard: list[str] = []
    found = shrinker.chat("Hello", max_new_tokens=6, greedy=True, on_text=heard.append)
    assert found.text == "".join(heard)
    assert found.tokens == 6
    speaker = shrinker._last
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": found.text}]
    longer = shrinker.chat([*turns, {"role": "user", "content": "More"}], max_new_tokens=6, system="Be brief.")
    assert longer.prompt_tokens > found.prompt_tokens
    assert shrinker._last is speaker
    hot = [shrinker.chat("Hello", max_new_tokens=6, temperature=5.0, seed=seed).text for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]
    result = shrinker.shrink(intermediate_size=16, **{**quick, "evaluate": False, "benchmark": False})
    answer = result.chat("Hello", max_new_tokens=6)
    assert answer.text == result.shrinker.chat("Hello", max_new_tokens=6).text
    for wrong, message in (
        ({"messages": []}, "messages must be"),
        ({"messages": "Hello", "temprature": 1.0}, "unknown option 'temprature'"),
        ({"messages": "Hello", "seed": -1}, "seed must be"),
    ):
        with pytest.raises(RequestError, match=message):
            shrinker.chat(**wrong)
