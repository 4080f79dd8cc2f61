from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.errors import ShapeError
from optimum_ishrink.importance.layer_selection import choose_greedily, spans_with
from optimum_ishrink.pipeline import cutting
from optimum_ishrink.planning.nesting import confined_scores, is_nested, removed_layers
from optimum_ishrink.report.plan import Choice, ExpertMerge, Plan
from optimum_ishrink.report.vocabulary import VocabularyRecord, row_spans
from optimum_ishrink.search.making import Maker
from optimum_ishrink.text.calibration import Calibration
from tests.helpers.tiny import save_tiny, supported_shape, tiny_config

BEFORE = {"num_hidden_layers": 4, "num_key_value_heads": 2, "intermediate_size": 6}


def plan(layers: tuple[int, ...], neurons: tuple[tuple[int, ...], ...] | None = None, rows: Any = None) -> Plan:
    units = {} if neurons is None else {"intermediate_size": neurons}
    kept = None if rows is None else VocabularyRecord(row_spans(rows), 9, len(rows))
    return Plan("m", None, "llama", BEFORE, {}, layers, units, {}, 2, 1, Choice(), vocabulary=kept)


def test_what_a_larger_model_has_lost_scores_lowest() -> None:
    within = plan((0, 1, 3), ((0, 2, 4), (1, 2, 3), (0, 4, 5)))
    scores = {
        "num_hidden_layers": torch.arange(4.0),
        "intermediate_size": torch.arange(24.0).view(4, 6),
        "num_key_value_heads": torch.ones(4, 2),
    }
    found = confined_scores(scores, within)
    assert found["num_hidden_layers"].tolist() == [0, 1, -math.inf, 3]
    assert found["intermediate_size"][1].tolist() == [-math.inf, 7, 8, 9, -math.inf, -math.inf]
    assert found["num_key_value_heads"] is scores["num_key_value_heads"]
    assert scores["num_hidden_layers"][2] == 2 and removed_layers(within) == (2,)


def test_models_are_nested_in_every_dimension() -> None:
    larger = plan((0, 1, 3), ((0, 2, 4), (1, 2, 3), (0, 4, 5)), range(8))
    smaller = plan((0, 3), ((2, 4), (0, 5)), range(1, 7))
    assert (
        is_nested(larger, smaller) and is_nested(None, smaller) and is_nested(None, None) and is_nested(larger, larger)
    )
    assert not is_nested(smaller, larger) and not is_nested(larger, None)
    for other in (
        replace(smaller, layers=(0, 2)),
        replace(smaller, units={"intermediate_size": ((2, 3), (0, 5))}),
        replace(smaller, units={}),
        replace(smaller, vocabulary=None),
        replace(smaller, vocabulary=VocabularyRecord("0-8", 9, 9)),
        replace(smaller, merges=(((0, 1),), ((0, 1),))),
        replace(smaller, expert_merges=((ExpertMerge((0,), (1.0,)),),) * 2),
    ):
        assert not is_nested(larger, other)
    whole = replace(larger, units={"intermediate_size": (tuple(range(6)),) * 3})
    assert is_nested(whole, replace(smaller, units={}))


def test_layers_that_are_gone_are_removed_first_of_all() -> None:
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def score_again(remaining: Any, removed: tuple[int, ...]) -> torch.Tensor:
        asked.append((tuple(remaining), removed))
        return torch.tensor([float(layer) for layer in remaining])

    first = torch.tensor([0.0, 9.0, 8.0, 7.0, 6.0])
    assert choose_greedily(first, score_again, 3, range(1, 5), None, (2,)) == (0, 3, 4)
    assert asked == [((1, 3, 4), (2,))]
    assert choose_greedily(first, score_again, 4, range(1, 5), None, (2,)) == (0, 1, 3, 4)
    assert len(asked) == 1
    assert spans_with((2, 3), [(0, 3), (1, 4), (2, 5)]) == [(1, 4), (2, 5)]
    assert spans_with((), [(0, 3)]) == [(0, 3)]
    with pytest.raises(ShapeError, match="no span of so many layers has layers 1, 4, which the larger model"):
        spans_with((4, 1), [(0, 3), (1, 4)])


@pytest.mark.parametrize(
    ("model_type", "selection"),
    [
        ("llama", "one-shot"),
        ("phi3", "one-shot"),
        *(
            pytest.param(model_type, "one-shot", marks=pytest.mark.slow)
            for model_type in ("cohere", "gemma3_text", "gpt2", "gpt_neox", "mixtral", "olmo2", "qwen3", "stablelm")
        ),
        ("llama", "greedy"),
        ("llama", "contiguous"),
    ],
)
def test_a_smaller_model_of_any_architecture_is_a_part_of_the_larger(
    model_type: str, selection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)

    def random_scores(session: Session, options: Any, calibration: Any, keys: Any) -> dict[str, torch.Tensor]:
        before = session.source.binding.shape
        layers, experts = before["num_hidden_layers"], session.source.binding.mlps
        units = {key: before[key] * (experts if key == "intermediate_size" else 1) for key in keys}
        return {
            key: torch.rand(layers, generator=draw)
            if key == "num_hidden_layers"
            else torch.rand(layers, units[key], generator=draw)
            for key in keys
        }

    monkeypatch.setattr(cutting, "score", random_scores)  # those of another vocabulary, or another day
    monkeypatch.setattr(
        "optimum_ishrink.importance.stage.score_spans",
        lambda model, binding, batches, criterion, spans, without=(): torch.rand(len(spans), generator=draw),
    )
    config = tiny_config(model_type, num_hidden_layers=7)
    source = open_source(save_tiny(tmp_path / "base", config))
    how = IShrinkConfig(
        compensation="none",
        layer_selection=selection,
        layer_importance="block-influence" if selection == "one-shot" else "divergence",
        keep_first_layers=1,
        keep_last_layers=0,
        calibration_samples=2,
        calibration_length=8,
        dtype="float32",
    )
    session = Session(source, how)
    maker = Maker(session, how, Calibration(how, session), tmp_path)
    maker.config = maker.config.replace(for_runtime=None)
    base, name, last = source.binding.shape, "", None
    for layers, neurons, groups in ((6, 16, 4), (5, 16, 2), (4, 8, 1)):
        wanted = supported_shape(
            config, {"num_hidden_layers": layers, "intermediate_size": neurons, "num_key_value_heads": groups}
        )
        shape = {**base, **wanted}
        shape["num_attention_heads"] = (
            base["num_attention_heads"] // base["num_key_value_heads"] * shape["num_key_value_heads"]
        )
        found = maker.plan(shape, name)
        assert found is not None and is_nested(last, found), (layers, neurons, groups)
        if last is not None and model_type == "llama":
            assert not is_nested(last, maker.plan(shape))  # scores alone do not nest
        name, last = maker.name(shape, name), found
