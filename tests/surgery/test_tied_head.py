from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.report.tied_head import HeadRecord
from optimum_ishrink.surgery import tied_head
from optimum_ishrink.surgery.tied_head import compare_head, is_near
from tests.helpers.embeddings import save_with_head
from tests.helpers.tiny import VOCAB, save_tiny, tiny_config

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def _compare(folder: Path) -> HeadRecord | None:
    source = open_source(folder)
    return compare_head(source.tensors, source.binding)


def _change(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **tensors}, path, {"format": "pt"})


def _random(rows: int = VOCAB, columns: int = 32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def test_a_model_without_a_head_of_its_own_has_none(tmp_path: Path) -> None:
    assert _compare(save_tiny(tmp_path / "tied", tiny_config("llama", 1))) is None


def test_equal_to_the_bit(tmp_path: Path) -> None:
    found = _compare(save_with_head(tmp_path / "base", tiny_config("llama")))
    assert found is not None and found.same and is_near(found)
    assert (found.relative_error, found.largest_row_error) == (0.0, 0.0)
    assert found.cosine == pytest.approx(1)
    assert found.num_parameters == VOCAB * 32
    assert (found.embedding, found.head, found.retained) == (EMBEDDING, HEAD, EMBEDDING)
    assert found.describe() == "equal to the bit"


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0"])
@pytest.mark.parametrize("swap", [False, True])
def test_quantisations_are_near_and_the_finer_one_is_retained(kind: str, swap: bool, tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    folder = save_with_head(tmp_path / "base", tiny_config("llama"))
    weight = _random().bfloat16().float()
    type_ = GGMLQuantizationType[kind]
    coarse = torch.from_numpy(dequantize(quantize(weight.numpy(), type_), type_).copy())
    _change(folder, **({EMBEDDING: coarse, HEAD: weight} if swap else {EMBEDDING: weight, HEAD: coarse}))
    found = _compare(folder)
    assert found is not None and is_near(found) and not found.same
    expected = float((weight - coarse).norm() / (coarse if swap else weight).norm())
    assert found.relative_error == pytest.approx(expected, rel=1e-4)
    assert found.largest_row_error > found.relative_error
    assert found.cosine == pytest.approx(float(torch.cosine_similarity(weight.flatten(), coarse.flatten(), 0)), 1e-4)
    # 8 bits are as good as bfloat16: then the embedding stays.
    assert found.retained == (HEAD if swap and kind != "Q8_0" else EMBEDDING)
    levels = (found.head_levels, found.embedding_levels) if swap else (found.embedding_levels, found.head_levels)
    assert levels[0] > levels[1]
    assert f"{found.relative_error:.1%} apart" in found.describe()


def test_two_bits_are_too_coarse(tmp_path: Path) -> None:
    found = _compare(save_with_head(tmp_path / "base", tiny_config("llama"), error=1.5))
    assert found is not None and not is_near(found)


def test_another_matrix_is_told_by_some_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config("llama", vocab_size=3000))
    read = 0
    original = tied_head.read_tensor

    def watched(info: tied_head.TensorInfo, *rest: tied_head.Scratch) -> torch.Tensor:
        nonlocal read
        read += info.nbytes
        return original(info, *rest)

    monkeypatch.setattr(tied_head, "read_tensor", watched)
    found = _compare(folder)
    assert found is not None and not is_near(found)
    assert found.relative_error == pytest.approx(2**0.5, rel=0.05)
    assert abs(found.cosine) < 0.1
    assert read < 0.4 * sum(open_source(folder).tensors[name].nbytes for name in (EMBEDDING, HEAD))


@pytest.mark.parametrize("changed", [1, 3])
def test_a_few_rows_that_were_trained_are_found(changed: int, tmp_path: Path) -> None:
    folder = save_with_head(tmp_path / "base", tiny_config("llama", vocab_size=3000))
    weight = _random(3000)
    head = weight.clone()
    head[1002 : 1002 + changed] = _random(3000)[5 : 5 + changed]
    _change(folder, **{EMBEDDING: weight, HEAD: head})
    found = _compare(folder)
    assert found is not None
    assert found.relative_error < 0.06
    assert found.largest_row_error > 1
    assert not is_near(found)


def test_rows_without_a_token_count_little(tmp_path: Path) -> None:
    folder = save_with_head(tmp_path / "base", tiny_config("llama"))
    weight = _random()
    weight[280:] = 0
    head = weight.clone()
    head[280:] = _random()[280:] * 1e-3
    _change(folder, **{EMBEDDING: weight, HEAD: head})
    found = _compare(folder)
    assert found is not None and is_near(found) and 0 < found.largest_row_error < 0.05


def test_nan_is_not_near(tmp_path: Path) -> None:
    folder = save_with_head(tmp_path / "base", tiny_config("llama"))
    head = _random()
    head[200, 3] = torch.nan
    _change(folder, **{EMBEDDING: _random(), HEAD: head})
    found = _compare(folder)
    assert found is not None and not is_near(found)


@settings(max_examples=10, deadline=None)
@given(error=st.floats(0.01, 0.4), seed=st.integers(0, 2**20))
def test_the_whole_is_measured(error: float, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = save_with_head(tmp_path_factory.mktemp("head") / "base", tiny_config("llama"), error=error, seed=seed)
    tensors = load_file(folder / "model.safetensors")
    one, other = tensors[EMBEDDING].double(), tensors[HEAD].double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tied_head, "_PIECE", 1000)
        found = _compare(folder)
    assert found is not None
    apart = (one - other).norm(dim=1) / torch.maximum(one.norm(dim=1), other.norm(dim=1))
    assert found.relative_error == pytest.approx(float((one - other).norm() / one.norm()), rel=1e-4, abs=1e-9)
    assert found.largest_row_error == pytest.approx(float(apart.max()), rel=1e-4, abs=1e-9)
