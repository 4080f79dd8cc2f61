from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.edge.gguf_quantizations import GGUF_QUANTIZATIONS
from optimum_ishrink.edge.write_gguf import quantize_file
from optimum_ishrink.errors import RequestError, SourceError
from optimum_ishrink.search.layout import KeptTokens
from optimum_ishrink.search.probe_files import write_probe
from optimum_ishrink.search.recipe import plain_types
from optimum_ishrink.search.template import Template, read_template
from tests.helpers.base_file import write_base_file

NAMES = ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "bf16"]


def test_a_files_bytes_are_known_before_it_is_written(base_file: Template, tmp_path: Path) -> None:
    matrices = [tensor.name for tensor in base_file.tensors if tensor.is_matrix]
    for number, mixed in enumerate(
        ({}, dict.fromkeys(matrices, "q4_0"), dict(zip(matrices, NAMES * 9, strict=False)))
    ):
        path = tmp_path / f"{number}.gguf"
        quantize_file(base_file.path, path, GGUF_QUANTIZATIONS["q8_0"], mixed or dict.fromkeys(matrices, "bf16"))
        expected = base_file.nbytes(base_file.binding.shape, mixed or dict.fromkeys(matrices, "bf16"))
        assert path.stat().st_size == expected


@given(
    st.integers(1, 3),
    st.sampled_from([32, 64, 96]),
    st.integers(300, 700),
    st.lists(st.sampled_from(NAMES[:5]), min_size=1, max_size=4),
)
def test_a_smaller_models_bytes_are_known(layers: int, width: int, rows: int, names: list[str]) -> None:
    template = _TEMPLATE[0]
    shape = {**template.binding.shape, "num_hidden_layers": layers, "intermediate_size": width, "vocab_size": rows}
    matrices = [tensor.name for tensor, _ in template.in_shape(shape) if tensor.is_matrix]
    types = dict(zip(matrices, names * len(matrices), strict=False))
    kept = KeptTokens(range(rows), range(rows // 3))
    path = _TEMPLATE[1] / "probe.gguf"
    path.unlink(missing_ok=True)
    write_probe(template, shape, types, path, kept)
    merges = [template.merges[rank] for rank in kept.merges or ()]
    tokenizer = template.tokenizer_bytes([template.tokens[row] for row in kept.rows], merges)
    # The template says nothing of the quantisations' version, which a probe does not either.
    assert abs(path.stat().st_size - template.nbytes(shape, types, tokenizer)) <= 64


_TEMPLATE: list = []


@pytest.fixture(autouse=True)
def remember(base_file: Template, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hypothesis runs one test function many times, and a fixture of its own for each would be written each time."""
    if not _TEMPLATE:
        _TEMPLATE.extend([base_file, tmp_path_factory.mktemp("probes")])


def test_plain_types_have_a_fine_head(base_file: Template) -> None:
    types = plain_types(base_file, "q4_0")
    assert types["output.weight"] == "q8_0"
    assert types["token_embd.weight"] == types["blk.0.ffn_up.weight"] == "q4_0"
    assert set(plain_types(base_file, "bf16").values()) == {"bf16"}


def test_a_file_that_is_stored_otherwise_is_refused(
    base_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_base_file(base_source, tmp_path / "base.gguf")
    with path.open("ab") as file:
        file.write(bytes(32))
    with pytest.raises(RequestError, match="would be expected to have .* bytes"):
        read_template(path, base_source.binding)
    monkeypatch.setattr("optimum_ishrink.search.template.gguf_names", lambda *_: {})
    with pytest.raises(RequestError, match="otherwise than the checkpoint"):
        read_template(path, base_source.binding)


def test_an_architecture_that_gguf_does_not_know(base_source: Source) -> None:
    from optimum_ishrink.edge.tensor_names import gguf_names

    with pytest.raises(SourceError, match="does not know the architecture nothing"):
        gguf_names(base_source.binding, "nothing")
