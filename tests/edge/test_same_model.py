from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.edge.gguf_file import HeaderValue
from optimum_ishrink.edge.gguf_quantizations import parse_gguf_quantization
from optimum_ishrink.edge.same_model import check_same_model
from optimum_ishrink.edge.write_gguf import quantize_file
from optimum_ishrink.errors import VerificationError

DOWN = "blk.0.ffn_down.weight"
NORM = "blk.0.attn_norm.weight"


def weights(seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "token_embd.weight": (scale * draw.standard_normal((8, 64))).astype(np.float16),
        DOWN: (scale * draw.standard_normal((64, 96))).astype(np.float16),
        NORM: np.ones(64, np.float32),
    }


def write(path: Path, tensors: dict[str, Any], *, base: float | None = 10_000.0, file_type: int = 1) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    writer.add_token_list(["a", "b", "c"])
    if base is not None:
        writer.add_rope_freq_base(base)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return path


@given(
    name=st.sampled_from(["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.0, 1e-3, 0.02, 1.0, 30.0]),
)
def test_what_was_quantised_is_the_same_model(
    name: str, seed: int, scale: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("same")
    exact = write(folder / "exact.gguf", weights(seed, scale))
    quantize_file(exact, folder / "q.gguf", parse_gguf_quantization(name))
    check_same_model(exact, folder / "q.gguf")


def test_a_model_that_was_cut_may_say_its_own_size(tmp_path: Path) -> None:
    exact = write(tmp_path / "exact.gguf", weights())
    general = [HeaderValue("general.size_label", "129M", gguf.GGUFValueType.STRING, None)]
    quantize_file(exact, tmp_path / "q.gguf", parse_gguf_quantization("q8_0"), general=general)
    check_same_model(exact, tmp_path / "q.gguf")


def other_weights() -> dict[str, Any]:
    found = weights()
    found[DOWN] = weights(1)[DOWN]
    return found


@pytest.mark.parametrize(
    ("changes", "tensors", "words"),
    [
        ({"base": 1e6}, weights(), "llama.rope.freq_base is 1000000.0, not 10000.0"),
        ({"base": None}, weights(), "llama.rope.freq_base is missing, not 10000.0"),
        ({}, other_weights(), f"the weights of {DOWN} are others"),
        ({}, {**weights(), DOWN: weights()[DOWN][::-1].copy()}, f"the weights of {DOWN} are others"),
        ({}, {**weights(), DOWN: 2 * weights()[DOWN]}, f"the weights of {DOWN} are others"),
        ({}, {**weights(), DOWN: np.inf * weights()[DOWN]}, f"the weights of {DOWN} are others"),
        ({}, {**weights(), NORM: np.full(64, 1.01, np.float32)}, f"the weights of {NORM} are others"),
        ({}, {**weights(), DOWN: weights()[DOWN][:32]}, f"{DOWN} has another shape"),
        ({}, {name: values for name, values in weights().items() if name != NORM}, f"its tensors differ in {NORM}"),
    ],
)
def test_another_model_is_refused(changes: dict[str, Any], tensors: Any, words: str, tmp_path: Path) -> None:
    exact = write(tmp_path / "exact.gguf", weights())
    other = write(tmp_path / "other.gguf", tensors, file_type=7, **changes)
    with pytest.raises(VerificationError, match=words):
        check_same_model(exact, other)


def test_rows_are_compared_throughout_a_matrix(tmp_path: Path) -> None:
    tensors = {DOWN: np.random.default_rng(0).standard_normal((4096, 32)).astype(np.float16)}
    exact = write(tmp_path / "exact.gguf", tensors)
    half = tensors[DOWN].copy()
    half[2048:] = half[:2048]
    with pytest.raises(VerificationError, match="are others"):
        check_same_model(exact, write(tmp_path / "half.gguf", {DOWN: half.astype(np.float32)}, file_type=0))
