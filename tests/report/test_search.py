from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_ishrink.errors import SourceError
from optimum_ishrink.report.page.search_page import render_search, search_plots
from optimum_ishrink.report.page.svg import draw
from optimum_ishrink.report.search import SEARCH_FILE, Figures, FoundModel, SearchRecord, kind_of, types_by_kind
from optimum_ishrink.report.search_tables import short_names
from optimum_ishrink.search.profile import Profile


def test_records_of_other_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        SearchRecord.read(tmp_path)
    for contents in ({"schema": 99}, []):
        (tmp_path / SEARCH_FILE).write_text(json.dumps(contents))
        with pytest.raises(SourceError, match="is of another version"):
            SearchRecord.read(tmp_path)
        with pytest.raises(SourceError, match="is not a profile that this version wrote"):
            Profile.read(tmp_path / SEARCH_FILE)


def record(*models: FoundModel) -> SearchRecord:
    return SearchRecord(
        "org/base", {}, "llama.cpp", "", 1, 128, 2048, ("a.txt",), 2, 24, ("q8_0",), {}, models, (), (), ()
    )


def model(name: str, nbytes: float, divergence: float) -> FoundModel:
    figures = Figures(divergence, 0.01, None, {"bytes": nbytes})
    return FoundModel(name, {}, {}, figures, figures, name.startswith("plain"))


def test_plots_call_models_by_letters_that_the_tables_explain() -> None:
    long = "q4_0+q5_0+q8_0, 34,112 rows, 28 layers, 1,056 neurons"
    models = (model(f"{long} (2)", 70e6, 0.5), model(long, 60e6, 0.8), model("plain q8_0, unpruned", 140e6, 0.01))
    found = record(*models)
    assert short_names(found) == {long: "A", f"{long} (2)": "B", "plain q8_0, unpruned": "q8_0"}
    (plot,) = search_plots(found)
    assert [mark.label for mark in draw(plot).marks] == ["B", "A", "q8_0"]
    page = render_search(found)
    for row in (f"A: {long}", f"B: {long} (2)", "plain q8_0, unpruned"):
        assert page.count(f'<th scope="row">{row}</th>') == 2  # among the models, and among the recipes
    assert f"<title>{long}: 60, 0.8</title>" in page and "\N{HORIZONTAL ELLIPSIS}" not in page
    many = record(*(model(f"{number} neurons", number, 1.0) for number in range(28)))
    assert list(short_names(many).values())[25:] == ["Z", "A1", "B1"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blk.3.ffn_down.weight", "ffn_down"),
        ("token_embd.weight", "token_embd"),
        ("model.layers.12.self_attn.q_proj.weight", "self_attn.q_proj"),
        ("model.layers.0.mlp.experts.5.up_proj.weight", "mlp.experts.up_proj"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
    ],
)
def test_matrices_are_of_a_kind_whatever_their_layer(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_types_are_counted_by_kind() -> None:
    types = {"h.0.mlp.c_fc.weight": "q8_0", "h.1.mlp.c_fc.weight": "q4_0", "h.2.mlp.c_fc.weight": "q4_0"}
    assert types_by_kind({**types, "wte.weight": "q8_0"}) == {"mlp.c_fc": "q4_0 (2), q8_0 (1)", "wte": "q8_0"}
