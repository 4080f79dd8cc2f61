"""Scoring whose memory runs out, and scoring that has room: the same scores in batches of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimum_ishrink import DeviceMemoryError
from optimum_ishrink.core import micro_batch
from optimum_ishrink.importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA
from optimum_ishrink.importance.engine import score_model
from tests.helpers.scored_models import bound_model

WINDOWS = torch.randint(3, 250, (10, 12), generator=torch.Generator().manual_seed(5))
UNITS = ("num_key_value_heads", "intermediate_size")
OUT = "CUDA out of memory. Tried to allocate 2.00 GiB."


def limited(model: Any, most: int, *, from_call: int = 0) -> list[int]:
    """Let no more than `most` windows leave the model's last layer from some call on; return the sizes that did.

    What runs before has left its traces in the sums by then.
    """
    ran: list[int] = []

    def check(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        count = len(args[0] if args else kwargs["hidden_states"])
        if len(ran) >= from_call and count > most:
            raise torch.cuda.OutOfMemoryError(OUT)
        ran.append(count)

    model.model.layers[-1].register_forward_hook(check, with_kwargs=True)
    return ran


def scores(unit: str | None, layer: str | None, model: Any = None, **how: Any) -> dict[str, torch.Tensor]:
    made, binding = bound_model("llama")
    keys = (*(UNITS if unit else ()), *(("num_hidden_layers",) if layer else ()))
    return score_model(
        made if model is None else model,
        binding,
        WINDOWS,
        UNIT_CRITERIA[unit] if unit else None,
        LAYER_CRITERIA[layer] if layer else None,
        keys,
        **how,
    )


PAIRS = [
    ("taylor", "block-influence"),
    ("taylor-unit", None),
    ("fisher", "fisher"),
    ("activation-norm", "block-influence"),
    (None, "divergence"),
    ("logits-mse", None),
]


@pytest.mark.parametrize(("unit", "layer"), PAIRS)
def test_the_scores_are_the_same(unit: str | None, layer: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    plain = scores(unit, layer, group_size=24)
    model = bound_model("llama")[0]
    ran = limited(model, 1, from_call=1)
    short = scores(unit, layer, model, group_size=24)
    assert ran[0] == 4
    assert set(ran[1:]) == {1}
    messages = capsys.readouterr().err
    assert "scoring: out of memory with 4 windows at once; it goes on with 2" in messages
    assert "scoring: out of memory with 2 windows at once; it goes on with 1" in messages
    for key, values in plain.items():
        torch.testing.assert_close(short[key], values, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("unit", "layer"), PAIRS)
def test_more_windows_at_once_change_nothing(
    unit: str | None, layer: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = scores(unit, layer, group_size=24)
    monkeypatch.setattr(micro_batch, "is_measured", lambda device: True)
    monkeypatch.setattr(micro_batch, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(micro_batch, "_start_measuring", lambda device: 0)
    monkeypatch.setattr(micro_batch, "_most_taken", lambda device: 10**6)
    model = bound_model("llama")[0]
    ran = limited(model, 99)
    grown = scores(unit, layer, model, group_size=24, grows=True)
    # One gradient of each batch is what these criteria are made of.
    assert max(ran) == (4 if unit in ("taylor", "taylor-unit") else 6)
    for key, values in plain.items():
        torch.testing.assert_close(grown[key], values, atol=1e-6, rtol=1e-3)


def test_one_window_that_does_not_fit() -> None:
    model = bound_model("llama")[0]
    limited(model, 0)
    with pytest.raises(DeviceMemoryError, match="scoring ran out of memory on cpu with one window.*--offload always"):
        scores("activation-norm", None, model)
