"""Compiled layers compute and train as the others do; what cannot be compiled is one line."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ishrink import IShrinker
from optimum_ishrink.errors import RequestError
from optimum_ishrink.modeling.compiled_layers import check_compiler, compiled_layers
from optimum_ishrink.recovery.teacher import LiveTeacher
from tests.helpers.small_recovery import LAYERS, cut_model, go, random_text, shallow

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
@pytest.mark.filterwarnings("ignore")  # what torch says while it compiles
def test_the_curve_is_the_same(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    how: dict[str, Any] = {"text": random_text(16), "loss": "kl", "trained": "full", "learning_rate": 1e-3}
    plain = go(tmp_path / "plain", **how)
    model, teacher = cut_model(shallow()), shallow()
    forward = type(model.model.layers[0]).forward
    check_compiler(model.device)
    torch._dynamo.utils.counters.clear()
    with compiled_layers(model, LAYERS[:2]), compiled_layers(teacher, LAYERS[:2]):
        compiled = go(tmp_path / "compiled", LiveTeacher(teacher), model=model, **how)
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 2  # one that trains, one that does not
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert model.model.layers[0].forward.__func__ is forward
    torch.testing.assert_close(torch.tensor(compiled.losses), torch.tensor(plain.losses), atol=1e-4, rtol=1e-4)
    assert compiled.record.held_out_loss == pytest.approx(plain.record.held_out_loss, abs=1e-4)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nin torch._inductor.config.cpp.cxx: (None, 'g++')")

    monkeypatch.setattr(torch, "compile", fail)
    expected = r"torch_compile cannot compile for cpu \(No working C\+\+ compiler found in .*\); install a C\+\+ comp"
    with pytest.raises(RequestError, match=expected):
        check_compiler(torch.device("cpu"))


def test_a_layer_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(forward: Any) -> Any:
        def run(*_: Any, **__: Any) -> Any:
            raise torch._dynamo.exc.Unsupported("call of something")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    model = shallow()
    with (
        compiled_layers(model, LAYERS[:2]),
        pytest.raises(RequestError, match=r"a layer of this model cannot be compiled \(.*something.*\); leave out"),
    ):
        model(input_ids=torch.tensor([[1, 2]]))
    model(input_ids=torch.tensor([[1, 2]]))


def test_a_recovery_compiles_student_and_teacher(
    llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    IShrinker.from_pretrained(llama_folder, dtype="float32", device="cpu").shrink(
        num_hidden_layers=3,
        layer_importance="l2-norm",
        compensation="none",
        recovery="kl",
        recovery_data=str(text_file),
        recovery_tokens=300,
        recovery_length=16,
        recovery_batch_size=4,
        recovery_train="norms",
        torch_compile=True,
        evaluate=False,
        benchmark=False,
        save_directory=tmp_path / "out",
    )
    assert len(compiled) == 1 + 3 + 4  # one operation, to see that there is a compiler, and the layers of both
