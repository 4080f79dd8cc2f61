from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_ishrink.architectures.headers import bind_folder
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import RequestError, ShapeError
from optimum_ishrink.search.options import AdviceOptions
from optimum_ishrink.search.ways import expected_rows, find_ways
from tests.helpers.edge_models import save_edge
from tests.helpers.tiny import VARIANTS, save_tiny, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_edge(tmp_path_factory.mktemp("asked") / "tiny", num_hidden_layers=8, vocab_size=32_000)


def ways(folder: Path, target: str) -> list:
    binding = bind_folder(folder)
    assert binding is not None
    types = ("q8_0", "q5_0", "q4_0")
    return find_ways(binding, AdviceOptions(target=target, quantization=types), model="me/m")


def test_every_way_keeps_the_budget_and_the_best_is_first(folder: Path) -> None:
    found = ways(folder, "bytes=-20%")
    whole = ways(folder, "bytes=1GB")[0]
    assert [way.divergence for way in found] == sorted(way.divergence for way in found)
    assert all(way.figures["bytes"] <= 0.8 * whole.figures["bytes"] for way in found)
    assert all(way.low < way.divergence < way.high for way in found)
    assert len({(way.name, tuple(way.types.items())) for way in found}) == len(found)


def test_a_budget_that_nothing_has_to_be_removed_for_needs_no_search(folder: Path) -> None:
    best = ways(folder, "bytes=1GB")[0]
    assert best.shape == {} and set(best.types.values()) == {"q8_0"}
    assert best.commands == ("ishrink export --model me/m --quantization q8_0 --output m-q8_0.gguf",)


def test_what_cannot_be_met_names_the_nearest(folder: Path) -> None:
    with pytest.raises(
        ShapeError, match=r"nothing that can be made keeps bytes=1kB: the nearest is .* beyond bytes by"
    ):
        ways(folder, "bytes=1kB")


def test_rows_cost_more_the_fewer_stay() -> None:
    rows = expected_rows(50_000)
    assert rows.extra(50_000) == 0 < rows.extra(40_000) < rows.extra(20_000)
    assert rows.least == 4_096


def test_the_command_prints_ways_and_their_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--model", str(folder), "--scenario", "phone"]) == 0
    text = capsys.readouterr().out
    assert "Ways to bytes=100MB" in text and "1: ishrink export" in text
    assert main(["advise", "--model", str(folder), "--target", "params=-10%", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == "params=-10%" and found["ways"][0]["commands"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a budget, such as --target bytes=80MB, or a --scenario"),
        (["--target", "bytes=1kB"], "nothing that can be made keeps bytes=1kB"),
        (["--target", "bytes=1MB;bytes=2MB"], "advise takes one budget"),
        (["--target", "decode=-5%"], "has to ask for more"),
        (["--target", "ttft=200ms"], "advise knows no device"),
        (["--target", "bytes=1MB,decode=30t/s"], "ask for a change, such as decode=+20%"),
        (
            ["--target", "bytes=1MB", "--quantization", "q4_k_m"],
            "q4_k_m is a mix of types",
        ),
        (["--target", "bytes=1MB", "--quantization", "q4_0,Q4_0"], "name each quantization once"),
        (["--scenario", "watch"], "unknown scenario 'watch'"),
    ],
)
def test_bad_requests_are_one_line(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", "--model", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_scenarios_are_budgets_with_types() -> None:
    assert AdviceOptions(scenario="embedded").types == ("q4_0",)
    assert AdviceOptions(scenario="server", quantization=["f16"]).types == ("f16",)
    with pytest.raises(RequestError, match="name a budget"):
        AdviceOptions()


@pytest.mark.parametrize("model_type", sorted(VARIANTS))
def test_every_architecture_has_ways(model_type: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", tiny_config(model_type))
    binding = open_source(folder).binding
    types = ("q8_0", "q4_0")
    found = find_ways(binding, AdviceOptions(target="bytes=10MB", quantization=types), model="m")
    assert found[0].shape == {}
    with pytest.raises(ShapeError, match="the nearest is"):
        find_ways(binding, AdviceOptions(target="bytes=1kB", quantization=types), model="m")
