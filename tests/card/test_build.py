"""The card: its metadata read back, its text, its figures."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.utils import yaml_dump
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.image import imread

from optimum_ishrink.card.build import build_card
from optimum_ishrink.card.figures import draw_quality, retained_shares
from optimum_ishrink.card.metadata import card_data, eval_results
from optimum_ishrink.card.summary import samples_markdown, summary_rows
from optimum_ishrink.core.table import escape_cell, markdown_table
from optimum_ishrink.errors import SourceError
from optimum_ishrink.hub.push import name_repository
from optimum_ishrink.report.measurement import Measurement, Sample
from optimum_ishrink.report.origin import Origin
from optimum_ishrink.report.report import ModelReport, Report
from tests.helpers.card_folder import DROPPED, LAYERS, RETAINED, SETTING, compare, make_folder, make_plan, make_report
from tests.helpers.drawing import with_pictures
from tests.helpers.records import make_environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a card that tests read and never change."""
    made = make_folder(tmp_path_factory.mktemp("card") / "small")
    with with_pictures():
        build_card(made)
    return made


def html(markdown: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(markdown)


def test_the_model_index_reads_back_equal_to_the_report(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    report = make_report()
    expected = [*report.shrunk.quality, *report.shrunk.speed]
    found = card.data.eval_results
    assert [(r.dataset_name, r.dataset_config, r.metric_type, r.metric_value) for r in found] == [
        (m.dataset, m.dataset, m.metric, m.value) for m in expected
    ]
    assert [(r.metric_args["n"], r.metric_args.get("stderr")) for r in found] == [(m.n, m.stderr) for m in expected]
    few_shot = {r.metric_type: r.metric_args.get("num_fewshot") for r in found if r.dataset_config == "quiz"}
    assert few_shot == {"acc": 0, "acc_norm": 0}
    timed = next(r for r in found if r.dataset_config == SETTING)
    assert timed.metric_args["cpu"] == "A processor"
    assert timed.metric_args["threads"] == 2
    # Every setting has its own name: a second name in a group would be lost.
    again = ModelCard(f"---\n{card.data.to_yaml()}\n---\n").data.eval_results
    assert again == found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12),
            st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.floats(0, 1e6),
        ),
        max_size=5,
        unique_by=lambda each: each[0],
    )
)
def test_any_number_and_name_round_trips(entries: list[tuple[str, float, float | None]]) -> None:
    shrunk = ModelReport("small", 1, 2, tuple(Measurement("acc", *entry, 3) for entry in entries))
    report = Report(None, shrunk, make_environment())
    data = card_data(report, make_plan(), origin=Origin(), name="small")
    written = yaml_dump(data.to_dict())
    back = ModelCard(f"---\n{written}---\n").data.eval_results or []
    assert [(r.dataset_config, r.metric_value, r.metric_args.get("stderr")) for r in back] == entries


def test_nan_and_inf_are_not_in_the_metadata() -> None:
    values = (math.nan, math.inf, -math.inf, 1.5)
    quality = tuple(Measurement("perplexity", f"text {i}", value, math.nan, 3) for i, value in enumerate(values))
    (only,) = eval_results(Report(None, ModelReport("small", 1, 2, quality), make_environment()))
    assert (only.metric_value, only.metric_args) == (1.5, {"n": 3})


def test_a_speed_measured_elsewhere_names_that_machine() -> None:
    elsewhere = make_environment(cpu="Another", threads=8, dtype="float32")
    speed = (Measurement("decode_tokens_per_second", SETTING, 9.0, None, 3).with_environment(elsewhere),)
    (only,) = eval_results(Report(None, ModelReport("small", 1, 2, (), speed), make_report().environment))
    assert only.metric_args == {"n": 3, "cpu": "Another", "threads": 8, "dtype": "float32"}


def test_the_metadata_has_only_keys_of_the_hub(folder: Path) -> None:
    data = metadata_load(folder / "README.md")
    assert data["language"] == ["en", "no"]  # YAML 1.1 takes an unquoted `no` for false
    assert data["license"] == "apache-2.0"
    assert data["base_model_relation"] in {"adapter", "merge", "quantized", "finetune"}
    assert set(data) <= {
        "base_model",
        "base_model_relation",
        "language",
        "library_name",
        "license",
        "license_link",
        "license_name",
        "model-index",
        "pipeline_tag",
        "tags",
    }
    assert all(isinstance(tag, str) for tag in data["tags"])


def test_the_first_table_has_size_quality_and_speed() -> None:
    rows = summary_rows(make_report(), make_plan())
    assert [row[0].split("*")[2] if "**" in row[0] else row[0] for row in rows] == [
        "Size",
        "Size, weights in MB",
        "Quality",
        "Quality",
        "Speed",
    ]
    assert "acc_norm on quiz (worst of 2 task figures)" in rows[3][0]
    assert rows[3][3] == "**90.9% retained** (95% interval 82.9% to 98.9%): worse"
    assert rows[4][3] == "**1.20 times** (99% interval 1.18 to 1.22): faster"


def test_the_worst_of_several_settings_is_shown() -> None:
    def timed(scales: tuple[float, ...]) -> tuple[Measurement, ...]:
        facts = {"quartiles": [1.0, 2.0], "samples": [1.0]}
        return tuple(
            Measurement("time_to_first_token_seconds", f"prompt {i}", scale, None, 3, facts)
            for i, scale in enumerate(scales)
        )

    base = ModelReport("base", 10, 20, speed=timed((1.0, 1.0, 1.0)))
    report = Report(base, ModelReport("small", 8, 16, speed=timed((0.8, 1.3, 0.9))), make_environment())
    what, *_, compared = summary_rows(report, make_plan())[-1]
    assert "prompt 1 (worst of 3 settings)" in what  # less is better here
    assert compared == "**1.30 times**"


def test_without_a_base_there_is_no_comparison() -> None:
    shrunk = make_report().shrunk
    rows = summary_rows(Report(None, shrunk, make_environment()), make_plan())
    assert [row[0] for row in rows] == [
        "**Size**, parameters",
        "**Quality**, perplexity (lower is better) on Python_topics &#60;b>&#38;.txt",
    ]
    assert rows[1][1] == rows[1][3] == ""


def test_an_unknown_interval_is_not_shown() -> None:
    unknown = dataclasses.replace(compare("acc", "quiz", 0.9, 0.1, "worse"), ratio_low=None, ratio_high=None)
    rows = summary_rows(make_report(comparisons=(unknown,)), make_plan())
    assert [row[3] for row in rows if "quiz" in row[0]] == ["**90.0% retained**: worse"]
    none = dataclasses.replace(unknown, ratio=None)
    assert not [row for row in summary_rows(make_report(comparisons=(none,)), make_plan()) if "quiz" in row[0]]


@given(st.text(max_size=60))
def test_samples_are_shown_verbatim(text: str) -> None:
    page = html(samples_markdown([Sample("prompt", text, "shrunk")]))
    cells = page.split("<td>")
    assert len(cells) == 4  # one row: nothing in the text ended the cell, the row or the table
    shown = cells[2].split("</td>")[0].replace("<br>", "\n")
    assert "<" not in shown and "*" not in set(shown) - set(text)


def test_samples_without_a_base_have_no_column_for_it() -> None:
    assert html(samples_markdown([Sample("a", None, "b")])).count("<th>") == 2


@pytest.mark.parametrize(
    "name", ["<b>&.txt", "_a_ *b*", "a_b", "[x](http://y)", "`x`", "a | b", "$$x$$", "a\nb", "\\|"]
)
def test_a_name_is_shown_verbatim(name: str) -> None:
    (cell,) = html(markdown_table(("name",), [(escape_cell(name),)])).split("<td>")[1:]
    shown = cell.split("</td>")[0]
    assert "<" not in shown
    plain = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert plain == " ".join(name.split())


def test_the_card_has_every_part(folder: Path) -> None:
    text = ModelCard.load(folder / "README.md").text
    for words in (
        "**Not measured:** gsm8k: its data set is not here",
        "vllm serve small\n",
        "ishrink export --model small --format gguf --quantization q8_0 --output small-q8_0.gguf",
        "apply_chat_template",
        "too few questions to tell",
        "ishrink shrink --model org/base",
        "at most 32 new tokens, the prompt as a user's turn",
    ):
        assert words in text, words
    # The three figures come before anything else, and what is long is folded.
    assert text.index("**Speed**") < text.index("```python") < text.index("## ")
    for long in ("| KV cache, bytes/token |", "| layer |", "Say a long word."):
        before = text[: text.index(long)]
        assert before.count("<details>") == before.count("</details>") + 1, long
    assert len([line for line in _visible(text).splitlines() if line.strip()]) < 90


def _visible(text: str) -> str:
    parts = text.split("<details>")
    return parts[0] + "".join(part.split("</details>")[1] for part in parts[1:])


def test_an_unused_column_is_left_out(folder: Path, tmp_path: Path) -> None:
    assert "McNemar" not in (folder / "README.md").read_text()
    paired = dataclasses.replace(compare("acc", "quiz", 0.9, 0.1, "worse"), base_only=9, shrunk_only=1, p_value=0.02)
    build_card(make_folder(tmp_path / "small", make_report(comparisons=(paired,))))
    assert "| McNemar's p | verdict |" in (tmp_path / "small" / "README.md").read_text()


def test_a_card_of_a_bare_report_has_no_empty_parts(tmp_path: Path) -> None:
    shrunk = ModelReport("small", 114_936_768, 229_873_536)
    bare = make_report(base=None, shrunk=shrunk, comparisons=(), samples=(), failures=())
    made = make_folder(tmp_path / "small", bare)
    (made / "chat_template.jinja").unlink()
    build_card(made)
    text = ModelCard.load(made / "README.md").text
    for words in (
        "## Quality",
        "## Speed",
        "Not measured:",
        "quality.png",
        "speed.png",
        "apply_chat",
        "KL divergence",
    ):
        assert words not in text, words
    assert "The loss of quality was not measured" in text
    assert 'tokenizer("Gravity is"' in text
    assert "model-index" not in metadata_load(made / "README.md")


def test_a_run_without_an_origin(tmp_path: Path) -> None:
    build_card(make_folder(tmp_path / "small", make_report(origin=None)))
    assert metadata_load(tmp_path / "small" / "README.md").keys().isdisjoint({"language", "license", "base_model"})


def test_figures_against_a_base_of_more_tokens_are_explained(tmp_path: Path) -> None:
    def figures(bits: float, ratio: float, extra: tuple[Measurement, ...] = ()) -> tuple[Measurement, ...]:
        bits_per_byte = Measurement("bits_per_byte", "a.txt", bits, 0.01, 32)
        return (bits_per_byte, Measurement("tokens_per_byte", "a.txt", ratio, None, 32), *extra)

    carried = tuple(
        Measurement("kl_divergence", name, 0.5, 0.01, 32, {"carried": True, "shared": share})
        for name, share in (("a.txt", 0.98765), ("b.txt", 0.9))
    )
    made = make_report(comparisons=(compare("tokens_per_byte", "a.txt", 1.02, 0.01, "no worse", better=False),))
    assert made.base is not None
    report = dataclasses.replace(
        made,
        base=dataclasses.replace(made.base, quality=figures(1.1, 0.25)),
        shrunk=dataclasses.replace(made.shrunk, quality=figures(1.2, 0.255, carried)),
    )
    made_folder = make_folder(tmp_path / "fewer", report)
    build_card(made_folder)
    text = (made_folder / "README.md").read_text(encoding="utf-8")
    assert "KL divergence from the base, nats/token, carried, at 98.8% of the tokens" in text
    assert "boundary between tokens (90.0% of this model's, or more)" in " ".join(text.split())
    assert "tokens per byte (lower is better)" in text
    assert "**Quality**, bits per byte (lower is better) on a.txt" in text
    results = ModelCard.load(made_folder / "README.md").data.eval_results
    assert [r.metric_args.get("shared") for r in results if r.metric_type == "kl_divergence"] == [0.98765, 0.9]
    build_card(other := make_folder(tmp_path / "same"))
    assert "boundary between tokens" not in (other / "README.md").read_text(encoding="utf-8")


def test_a_card_needs_a_plan(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "small")
    (folder / "ishrink_plan.json").unlink()
    with pytest.raises(SourceError, match="ishrink_plan.json does not exist"):
        build_card(folder)


def test_counts_are_not_drawn_as_speed(tmp_path: Path) -> None:
    counted = (Measurement("kv_cache_bytes_per_token", "bfloat16 cache", 8.0, None, 1),)
    base, shrunk = ModelReport("base", 10, 20, speed=counted), ModelReport("small", 8, 16, speed=counted)
    build_card(make_folder(tmp_path / "small", make_report(base=base, shrunk=shrunk, comparisons=())))
    assert not (tmp_path / "small" / "figures" / "speed.png").exists()


def test_a_chat_template_in_the_tokenizers_settings_is_found(tmp_path: Path) -> None:
    made = make_folder(tmp_path / "small")
    (made / "chat_template.jinja").unlink()
    (made / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    build_card(made)
    assert "apply_chat_template" in (made / "README.md").read_text()


@pytest.mark.parametrize("name", ["small", "a model", "it's"])
def test_every_example_names_the_repository(name: str, tmp_path: Path) -> None:
    report = make_report()
    report = dataclasses.replace(report, shrunk=dataclasses.replace(report.shrunk, name=name))
    build_card(make_folder(tmp_path / "folder", report))
    written = (tmp_path / "folder" / "README.md").read_text()
    text = name_repository(written, frozenset({name, "folder", "me"}), "me/mine")
    for words in (
        'AutoModelForCausalLM.from_pretrained("me/mine"',
        'AutoTokenizer.from_pretrained("me/mine"',
        "\nvllm serve me/mine\n",
        "\nishrink export --model me/mine --format gguf",
    ):
        assert words in text, words
    assert "--output small --calibration" in text  # the command that reproduces it is as it was
    assert name_repository(text, frozenset({name, "folder", "me"}), "me/mine") == text


def test_only_a_whole_name_is_replaced() -> None:
    card = "vllm serve small-2\nvllm serve small\n"
    assert name_repository(card, frozenset({"small"}), "me/x") == "vllm serve small-2\nvllm serve me/x\n"


def test_retained_shares_of_every_kind_of_cut() -> None:
    shares = retained_shares(make_plan())
    assert set(shares) == {"MLP neurons"}
    assert [i for i, share in enumerate(shares["MLP neurons"]) if share == 0] == list(DROPPED)
    assert {share for share in shares["MLP neurons"] if share} == {14 / 16}
    shape: dict[str, Any] = dict(make_plan().shape)
    depth = make_plan(new_shape={**shape, "num_hidden_layers": len(RETAINED)}, units={})
    assert retained_shares(depth) == {"whole layers": [float(layer in RETAINED) for layer in range(LAYERS)]}
    groups = make_plan(
        new_shape={**shape, "num_key_value_heads": 2, "num_attention_heads": 6},
        layers=tuple(range(LAYERS)),
        units={"num_key_value_heads": ((0, 2),) * LAYERS},
    )
    assert retained_shares(groups) == {"KV groups": [2 / 3] * LAYERS}
    merged = dataclasses.replace(
        groups,
        new_shape={**shape, "num_key_value_heads": 1},
        units={},
        merges=(((0, 1, 2),),) * LAYERS,
    )
    assert retained_shares(merged) == {"KV heads after the merge": [1 / 3] * LAYERS}


def test_every_figure_is_opaque_and_has_ink(folder: Path) -> None:
    pictures = sorted((folder / "figures").iterdir())
    assert [path.stem for path in pictures] == ["importance", "quality", "removed", "speed"]
    for path in pictures:
        picture = imread(path)
        assert picture.shape[2] == 3 or (picture[..., 3] == 1).all(), path.name
        for y in (0, -1):
            for x in (0, -1):
                assert picture[y, x, :3].tolist() == [1, 1, 1], path.name
        assert picture[..., :3].min() < 0.2, path.name  # dark ink on the white
        assert f"](figures/{path.name})" in (folder / "README.md").read_text()


def test_the_quality_figure_grows_with_its_rows(tmp_path: Path) -> None:
    rows = tuple(compare("acc", f"task $x$ {i}", 0.9, 0.1, "no worse") for i in range(12))
    draw_quality(make_report(comparisons=rows[:3]), tmp_path / "few.png")
    draw_quality(make_report(comparisons=rows), tmp_path / "many.png")
    few, many = imread(tmp_path / "few.png"), imread(tmp_path / "many.png")
    assert few.shape[1] == many.shape[1]
    assert many.shape[0] > 1.8 * few.shape[0]


def test_the_front_matter_is_plain_yaml(folder: Path) -> None:
    head = (folder / "README.md").read_text().split("---\n")[1]
    assert yaml.safe_load(head) == metadata_load(folder / "README.md")


def test_the_summary_prefers_pytorchs_speed_over_another_runtimes(tmp_path: Path) -> None:
    report = make_report()
    assert report.base is not None

    def other(value: float) -> Measurement:
        facts = {"quartiles": [1.0, 2.0], "samples": [1.0], "runtime": "llama.cpp"}
        return Measurement("decode_tokens_per_second", "llama.cpp q8_0", value, None, 3, facts)

    base = dataclasses.replace(report.base, speed=(*report.base.speed, other(9.0)))
    shrunk = dataclasses.replace(report.shrunk, speed=(*report.shrunk.speed, other(1.0)))
    both = dataclasses.replace(report, base=base, shrunk=shrunk)
    assert SETTING in summary_rows(both, make_plan())[-1][0]
    build_card(make_folder(tmp_path / "small", both))
    text = (tmp_path / "small" / "README.md").read_text()
    assert "No figure in this card was measured with either" not in text
    alone = dataclasses.replace(
        report,
        base=dataclasses.replace(base, speed=(other(9.0),)),
        shrunk=dataclasses.replace(shrunk, speed=(other(8.0),)),
    )
    assert "llama.cpp q8_0" in summary_rows(alone, make_plan())[-1][0]
