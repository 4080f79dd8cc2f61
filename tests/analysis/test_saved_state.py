from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from optimum_ishrink.analysis.saved_state import State
from optimum_ishrink.checkpoint.fingerprint import model_fingerprint
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.json_files import write_json
from optimum_ishrink.errors import OutputError
from optimum_ishrink.report.analysis import LayerSensitivity, SparsityLevel
from optimum_ishrink.report.measurement import Measurement
from tests.helpers.tiny import edit_json, save_tiny, tiny_config

KL = Measurement("kl_divergence", "text", 0.1, 0.01, 3, {"tokens": 30})
LEVEL = SparsityLevel("mlp", 0.1, {"intermediate_size": 8}, 64, 0.01, (KL,))
LAYER = LayerSensitivity(2, KL, KL, KL)
REQUEST = {"model": "abc", "levels": (0.0, 0.1)}


def filled(folder: Path) -> State:
    state = State(folder, REQUEST)
    state.store_inputs({"windows": torch.arange(6).view(2, 3), "num_hidden_layers": torch.rand(4)})
    state.add_level(LEVEL)
    state.add_layer(LAYER)
    return state


def test_what_was_measured_is_there_for_the_same_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = filled(tmp_path / "x.partial")
    again = State(tmp_path / "x.partial", REQUEST)
    assert (again.levels, again.layers, again.count) == ({("mlp", 0.1): LEVEL}, {2: LAYER}, 2)
    assert all(torch.equal(again.inputs[name], values) for name, values in first.inputs.items())
    assert again.is_stored
    assert capsys.readouterr().err == ""
    assert {path.name for path in (tmp_path / "x.partial").iterdir()} == {"analysis.json", "inputs.safetensors"}
    again.remove()
    assert not any(tmp_path.iterdir())


def test_another_request_starts_over_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "x.partial")
    other = State(tmp_path / "x.partial", {**REQUEST, "model": "abd"})
    assert (other.count, other.inputs, other.is_stored) == (0, {}, False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("starting over: ")
    assert "the request differs (model)" in line
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("analysis.json", "{"),
        ("analysis.json", "[]"),
        ("analysis.json", '{"schema": 99, "request": {}}'),
        ("analysis.json", '{"schema": 1, "request": {"model": "abc", "levels": [0.0, 0.1]}}'),
        ("inputs.safetensors", "not tensors"),
    ],
)
def test_what_cannot_be_read_starts_over(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "x.partial")
    (tmp_path / "x.partial" / name).write_text(text)
    assert State(tmp_path / "x.partial", REQUEST).count == 0
    assert "starting over" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["analysis.json", "inputs.safetensors"])
def test_what_a_kill_in_the_middle_of_a_write_leaves_is_removed(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    replace = Path.replace

    def kill(self: Path, target: Path) -> Path:
        if target.name == written:
            raise Killed
        return replace(self, target)

    folder = tmp_path / "x.partial"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a process that is killed tidies nothing up
        filled(folder)
    (left,) = folder.glob(".*")
    left.rename(folder / left.name.replace(str(os.getpid()), "99"))  # the run that resumes is another process
    state = filled(folder)
    assert len(list(folder.iterdir())) == 3
    state.remove()
    assert not any(tmp_path.iterdir())


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "x.partial"
    folder.mkdir()
    (folder / "mine").write_text("")
    state = filled(folder)
    state.remove()
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = State(None, REQUEST)
    state.store_inputs({"windows": torch.zeros(1)})
    state.add_level(LEVEL)
    state.remove()
    assert state.count == 1
    assert not state.is_stored
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_the_last_whole_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = filled(tmp_path / "x.partial")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("optimum_ishrink.analysis.saved_state.write_json", full)
    with pytest.raises(OutputError, match=r"cannot write in .*x.partial: No space left"):
        state.add_level(LEVEL)
    assert State(tmp_path / "x.partial", REQUEST).count == 2


def test_the_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    def fingerprint(name: str, seed: int = 0) -> str:
        return model_fingerprint(open_source(save_tiny(tmp_path / name, tiny_config("llama"), seed=seed)))

    assert fingerprint("a") == fingerprint("b")
    assert fingerprint("c", seed=1) != fingerprint("a")
    edit_json(tmp_path / "b" / "tokenizer_config.json", model_max_length=7)
    assert model_fingerprint(open_source(tmp_path / "b")) != fingerprint("a")
    fingerprint("d")
    write_json(tmp_path / "d" / "generation_config.json", {"eos_token_id": [1, 2]})
    assert model_fingerprint(open_source(tmp_path / "d")) != fingerprint("a")
