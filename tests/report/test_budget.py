from __future__ import annotations

from dataclasses import replace

import pytest

from optimum_ishrink.report.budget import THIS, budget_record, neighbours
from optimum_ishrink.report.search import Answer, Figures, FoundModel, SearchRecord
from optimum_ishrink.report.search_tables import budget_header, budget_rows


def found(name: str, nbytes: float, divergence: float, *, unpruned: bool = False, keeps: bool = True) -> FoundModel:
    expected = Figures(divergence * 1.1, None, None, {"bytes": nbytes, "memory": nbytes * 2})
    measured = Figures(divergence, 0.01, divergence, {"bytes": nbytes})
    types = {"blk.0.ffn_up.weight": "q4_0", "token_embd.weight": "q8_0"}
    return FoundModel(name, {"vocab_size": 8}, types, expected, measured, unpruned, ("bytes=80MB",) if keeps else ())


MODELS = (
    found("small", 50e6, 0.9),
    found("dominated", 70e6, 1.0),
    found("chosen", 79e6, 0.2),
    found("plain q4_0, unpruned", 78e6, 0.4, unpruned=True),
    found("plain q5_0, unpruned", 100e6, 0.1, unpruned=True, keeps=False),
    found("plain q8_0, unpruned", 140e6, 0.01, unpruned=True, keeps=False),
)


def record(models: tuple[FoundModel, ...]) -> SearchRecord:
    return SearchRecord(
        model="base",
        base={"vocab_size": 16},
        runtime="llama.cpp",
        build="1",
        threads=1,
        prompt=8,
        context=64,
        texts=("notes",),
        windows=2,
        length=24,
        quantizations=("q8_0", "q4_0"),
        reference={},
        models=models,
        expected_front=(),
        unpruned_front=(),
        answers=(Answer("bytes=80MB", "chosen", ("bytes",)),),
    )


def test_neighbours_lie_on_the_front() -> None:
    assert [each.name for each in neighbours(MODELS, MODELS[2])] == ["plain q4_0, unpruned", "plain q5_0, unpruned"]
    without = [each for each in MODELS if each.name != "plain q4_0, unpruned"]
    assert [each.name for each in neighbours(without, MODELS[2])] == ["small", "plain q5_0, unpruned"]
    assert neighbours(MODELS[2:3], MODELS[2]) == []
    assert [each.name for each in neighbours(MODELS, MODELS[5])] == ["plain q5_0, unpruned"]


def test_a_model_is_shown_between_its_neighbours() -> None:
    of = record(MODELS)
    budget = budget_record(of, of.answers[0])
    assert [each.name for each in budget.models] == ["plain q4_0, unpruned", THIS, "plain q5_0, unpruned"]
    assert (budget.made, budget.types) == (3, {"ffn_up": "q4_0", "token_embd": "q8_0"})
    rows = budget_rows(budget)
    assert rows[1] == (THIS, "0.200 ± 0.010", "79.00 MB", "158.00 MB", "", "")
    header = budget_header(budget)
    assert header[2] == "file" and all(len(row) == len(header) for row in rows)


def test_a_checkpoint_that_runs_has_no_types_of_a_file() -> None:
    of = replace(record(MODELS), runtime="torch")
    budget = budget_record(of, of.answers[0])
    assert budget.types == {} and budget_header(budget)[2] == "checkpoint"


@pytest.mark.parametrize("kept", [True, False])
def test_the_best_unpruned_model_is_shown_where_one_keeps_the_budget(kept: bool) -> None:
    models = (*MODELS[:3], found("plain q3", 40e6, 2.0, unpruned=True, keeps=kept), *MODELS[4:])
    of = replace(record(models), answers=(Answer("bytes=80MB", "chosen", ()),))
    names = [each.name for each in budget_record(of, of.answers[0]).models]
    assert names == ["plain q3"] * kept + ["small", THIS, "plain q5_0, unpruned"]
