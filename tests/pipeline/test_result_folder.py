"""What a run leaves in its output folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from optimum_ishrink import IShrinker
from optimum_ishrink.card.build import build_card
from optimum_ishrink.card.metadata import card_data, eval_results
from optimum_ishrink.cli.program import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import SourceError
from optimum_ishrink.report.origin import Origin
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.report import Report
from optimum_ishrink.report.run import Run
from tests.helpers.drawing import with_pictures


def test_the_output_folder_holds_everything(output: Path) -> None:
    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "config.json",
        "figures/importance.png",
        "figures/quality.png",
        "figures/removed.png",
        "figures/speed.png",
        "generation_config.json",
        "ishrink_config.json",
        "ishrink_importance.safetensors",
        "ishrink_plan.json",
        "ishrink_report.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    plan, report = Run.read(output).plan, Run.read(output).report
    assert plan is not None
    model = AutoModelForCausalLM.from_pretrained(output)
    assert report.shrunk.params == plan.new_num_parameters == model.num_parameters()
    assert report.shrunk.bytes == 4 * report.shrunk.params
    assert {m.metric for m in report.shrunk.quality} == {
        "perplexity",
        "bits_per_byte",
        "kl_divergence",
        "top1_agreement",
    }
    assert len({m.metric for m in report.shrunk.speed}) == len(report.shrunk.speed) == 8
    assert report.base is not None
    assert report.base.params == plan.num_parameters


def test_the_card_holds_the_report_and_nothing_else(output: Path) -> None:
    card = ModelCard.load(output / "README.md")
    report = Report.from_json(read_json(output / "ishrink_report.json"))
    assert card.data.base_model == "org/tiny"
    assert card.data.tags == ["pruning", "structured-pruning", "optimum-ishrink", "llama"]
    read_back = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    expected = {(m.dataset, m.metric): m.value for part in (report.shrunk.quality, report.shrunk.speed) for m in part}
    assert read_back == expected
    assert f"{report.shrunk.params:,}" in card.text
    assert "ishrink shrink --model" in card.text
    for path in output.rglob("*"):
        if path.suffix in (".md", ".json"):
            # The texts lie in the temporary folder of the tests: nothing that is published may say where.
            assert str(output.parent.parent) not in path.read_text(encoding="utf-8"), path.name


def test_the_card_is_rebuilt_from_the_folder(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(output, tmp_path / "tiny-small")
    for name in ("README.md", *(f"figures/{each}.png" for each in ("importance", "quality", "removed", "speed"))):
        (copy / name).unlink()
    with with_pictures():
        assert main(["card", "--model", str(copy)]) == 0
    for name in ("README.md", *(f"figures/{each}.png" for each in ("importance", "quality", "removed", "speed"))):
        assert (copy / name).read_bytes() == (output / name).read_bytes()
    (copy / "ishrink_report.json").unlink()
    assert main(["card", "--model", str(copy)]) == 2
    assert "ishrink_report.json does not exist" in capsys.readouterr().err


def test_a_card_without_numbers_has_no_results(output: Path) -> None:
    import dataclasses

    plan = Plan.from_json(read_json(output / "ishrink_plan.json"))
    report = Report.from_json(read_json(output / "ishrink_report.json"))
    bare = dataclasses.replace(report, shrunk=dataclasses.replace(report.shrunk, quality=(), speed=()))
    assert eval_results(bare) == []
    data = card_data(bare, plan, origin=Origin(), name="x").to_dict()
    assert "model-index" not in data
    assert "base_model" not in data


def test_build_card_needs_the_artifacts(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="ishrink_report.json does not exist"):
        build_card(tmp_path)


def test_the_terms_of_the_base_are_the_results(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "base")
    terms = "license: other\nlicense_name: falcon-llm-license\nlicense_link: https://falconllm.tii.ae/terms.html\n"
    (folder / "README.md").write_text(f"---\n{terms}language: [en, fr]\n---\n# Base\n")
    how = {"importance": "l2-norm", "compensation": "none", "evaluate": False, "benchmark": False}
    IShrinker.from_pretrained(folder).shrink(intermediate_size=16, save_directory=tmp_path / "out", **how)
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.license_name) == ("other", "falcon-llm-license")
    assert data.license_link.startswith("https://")
    assert data.language == ["en", "fr"]


def test_a_criterion_that_chose_nothing_is_not_named(llama_folder: Path, tmp_path: Path) -> None:
    how = {"importance": "l2-norm", "compensation": "none", "evaluate": False, "benchmark": False}
    result = IShrinker.from_pretrained(llama_folder).shrink(intermediate_size=16, save_directory=tmp_path / "o", **how)
    assert result.plan.choice.calibration is None
    assert result.plan.choice.layer_importance is None
    assert "block-influence" not in (tmp_path / "o" / "README.md").read_text()
