"""`ishrink describe`: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from optimum_ishrink import check_description, draft_description
from optimum_ishrink.architectures import description as registry
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import SourceError
from tests.helpers.refusals import refusal
from tests.helpers.tiny import SMALL, edit_json, tiny_raw_config

FAMILY = "lara_mini"
"""A family of transformers that has no description in the package."""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with nothing but the config of a family without a description, which stays unregistered."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "new-model"
    folder.mkdir()
    raw = {**AutoConfig.for_model(FAMILY, **SMALL).to_dict(), "model_type": FAMILY}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def test_a_draft_is_written_proved_and_used(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown architecture" in refusal(["plan", "--model", "new-model", "--shape-only"], capsys, notes=True)
    assert main(["describe", "--model", "new-model", "--output", "new.json"]) == 0
    out = capsys.readouterr().out
    assert f"A draft for {FAMILY}, on a tiny random model" in out and "all dimensions together" in out
    assert "ishrink shrink --model new-model --architecture new.json" in out
    written = json.loads(Path("new.json").read_text())
    assert (written["model_type"], written["models"]) == (FAMILY, "new-model")
    words = ["--model", "new-model", "--architecture", "new.json"]
    assert main(["plan", *words, "--shape-only", "--num-hidden-layers", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_shape"]["num_hidden_layers"] == 3
    assert main(["describe", *words, "--check", "--json"]) == 0
    assert all(proof["holds"] for proof in json.loads(capsys.readouterr().out)["proofs"])
    assert "described already" in refusal(["describe", "--model", "new-model"], capsys)


@pytest.mark.slow
def test_a_description_that_proves_false_ends_in_one_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--model", "new-model", "--output", "new.json", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["description"]
    pattern = next(name for name in written["tensors"] if name.endswith("o_proj.weight"))
    edit_json(Path("new.json"), tensors={**written["tensors"], pattern: "hidden, head_dim*heads"})
    assert main(["describe", "--model", "new-model", "--architecture", "new.json", "--check"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "proves false for this config" in line and f"axis 1 of {pattern}: described as head_dim*heads" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--check"], "has no description to check; leave out --check"),
        (["--check", "--output", "x.json"], "--check writes no file"),
        (["--architecture", "x.json"], "pass --check to prove it"),
        (["--output", "missing/x.json"], "missing is not a folder"),
        (["--output", "new-model"], "new-model is a folder; name a file in it"),
        (["--model", "./nowhere"], "./nowhere does not exist; name a folder with a config.json, or a Hub id"),
        (["--model", "a/b/c"], "a/b/c does not exist"),
        (["--model", "list.json"], "list.json is not a JSON object"),
        (["--model", "remote.json"], "remote code, which is never run"),
        (["--model", "described.json"], "'llama' is described already"),
        (["--check", "--architecture", "other.json"], "other.json describes 'llama', but new-model is 'lara_mini'"),
    ],
)
def test_one_line_says_what_is_wrong(
    model: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("list.json").write_text("[]")
    Path("remote.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}))
    Path("described.json").write_text(json.dumps(tiny_raw_config()))
    package = Path(registry.__file__).parent
    Path("other.json").write_text((package / "llama.json").read_text())
    given = words if "--model" in words else ["--model", "new-model", *words]
    assert message in refusal(["describe", *given], capsys)


@pytest.mark.slow
def test_from_python(model: Path) -> None:
    draft = draft_description(model)
    assert draft.to_json()["description"] == draft.data
    again = draft_description(json.loads((model / "config.json").read_text()))
    assert {**again.data, "models": "new-model"} == draft.data
    assert check_description(tiny_raw_config()).model_type == "llama"
    with pytest.raises(SourceError, match="does not exist"):
        draft_description("./nowhere")
