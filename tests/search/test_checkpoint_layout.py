from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink import IShrinkConfig, IShrinker
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.checkpoint.tensors import OutgoingTensor, read_index
from optimum_ishrink.checkpoint.writing import verify_checkpoint, weights_nbytes, write_weights
from optimum_ishrink.errors import RequestError
from optimum_ishrink.search.checkpoint_layout import checkpoint_layout, own_type
from optimum_ishrink.search.options import ProfileOptions
from optimum_ishrink.search.torch_runtime import TorchRuntime, checkpoint_nbytes
from tests.helpers.tiny import tiny_config, tiny_model


def saved(folder: Path, model_type: str, dtype: torch.dtype = torch.bfloat16) -> Source:
    tiny_model(tiny_config(model_type), 0).to(dtype).save_pretrained(folder)
    return open_source(folder)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "gemma3_text", "qwen3_moe"])
def test_a_probes_bytes_are_known_before_it_is_written(model_type: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "base", model_type)
    runtime = TorchRuntime(Session(source, IShrinkConfig()), ProfileOptions(runtime="torch"))
    layout, base = runtime.layout, source.binding.shape
    assert runtime.types == ("bf16",)
    for number, changes in enumerate(({}, {"num_hidden_layers": base["num_hidden_layers"] - 1})):
        path = tmp_path / str(number)
        runtime.write_probe({**base, **changes}, {}, path, None)
        verify_checkpoint(path)
        assert runtime.nbytes(path) == layout.nbytes({**base, **changes}, {})


def test_a_smaller_models_bytes_are_those_that_shrink_writes(
    base_source: Source, text_file: Path, tmp_path: Path
) -> None:
    layout = checkpoint_layout(base_source)
    assert own_type(base_source) == "f32"
    rows = base_source.binding.shape["vocab_size"] // 64 * 64 - 64
    for number, shape in enumerate(
        ({"intermediate_size": 64}, {"num_hidden_layers": 2, "intermediate_size": 32}, {"vocab_size": rows})
    ):
        folder = tmp_path / str(number)
        config: dict[str, Any] = {"evaluate": False, "benchmark": False, "compensation": "none"}
        config |= {"calibration_samples": 4, "calibration_length": 16, "importance_samples": 2}
        if "vocab_size" in shape:
            config["vocab_languages"] = []
        IShrinker(base_source).shrink(**shape, **config, calibration=[str(text_file)], save_directory=folder)
        sizes = base_source.binding.resized(shape)
        whole = {**base_source.binding.shape, **shape, "num_attention_heads": sizes["heads"]}
        assert checkpoint_nbytes(folder) == layout.nbytes(whole, {})


_SOURCE: list[Source] = []


@pytest.fixture(autouse=True)
def remember(base_source: Source) -> None:
    """Hypothesis runs one test function many times."""
    _SOURCE[:] = [base_source]


@given(st.integers(1, 3), st.sampled_from([32, 64, 96]), st.integers(2_000, 200_000))
def test_several_files_are_counted_as_they_are_written(layers: int, width: int, largest: int) -> None:
    layout = checkpoint_layout(_SOURCE[0])
    shape = {**layout.binding.shape, "num_hidden_layers": layers, "intermediate_size": width}
    outgoing = [
        replace(each, make=lambda each=each: torch.zeros(each.shape))
        for each in layout.outgoing(layout.in_shape(shape))
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_weights(outgoing, Path(folder), max_shard_size=largest)
        files = {info.file for info in read_index(Path(folder)).values()}
        written = sum(file.stat().st_size for file in files)
    assert weights_nbytes(outgoing, max_shard_size=largest) == written
    assert len(files) > 1 or sum(each.nbytes for each in outgoing) <= largest


def test_matrices_need_one_dtype(tmp_path: Path) -> None:
    source = saved(tmp_path / "base", "llama")
    tensors = [
        OutgoingTensor(
            name,
            "F32" if "q_proj" in name else info.dtype,
            info.shape,
            make=lambda name=name, info=info: torch.zeros(
                info.shape, dtype=torch.float32 if "q_proj" in name else torch.bfloat16
            ),
        )
        for name, info in source.tensors.items()
    ]
    (tmp_path / "base" / "model.safetensors").unlink()
    write_weights(tensors, tmp_path / "base")
    with pytest.raises(RequestError, match="are stored as BF16, F32; the runtime torch runs a checkpoint in the one"):
        own_type(open_source(tmp_path / "base"))
