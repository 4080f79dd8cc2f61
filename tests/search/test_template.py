from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimum_ishrink import IShrinker
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.demo import demo_source
from optimum_ishrink.edge.gguf_file import HeaderValue
from optimum_ishrink.edge.gguf_quantizations import GGUF_QUANTIZATIONS
from optimum_ishrink.edge.gguf_tokenizer import name_once_cut
from optimum_ishrink.edge.write_gguf import quantize_file
from optimum_ishrink.errors import RequestError, SourceError
from optimum_ishrink.report.run import read_plan
from optimum_ishrink.search.gguf_files import write_base_file as write_exact_file
from optimum_ishrink.search.gguf_files import write_mixed_file
from optimum_ishrink.search.layout import KeptTokens
from optimum_ishrink.search.probe_files import smaller_values, write_probe
from optimum_ishrink.search.recipe import plain_types
from optimum_ishrink.search.template import PRE_TOKENIZER, Template, read_template
from optimum_ishrink.vocabulary.rewrite import kept_merges
from optimum_ishrink.vocabulary.splits import find_splits
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file
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


def test_a_cut_vocabularys_pre_tokenizer_may_have_another_name(base_file: Template, tmp_path: Path) -> None:
    named = HeaderValue(PRE_TOKENIZER, "smollm", gguf.GGUFValueType.STRING, None)
    base = replace(base_file, values=(*base_file.values, named))
    cut = replace(base, pre_tokenizer_once_cut="deepseek-llm")
    kept = KeptTokens(range(300), range(20))
    assert cut.vocabulary_bytes(kept) - base.vocabulary_bytes(kept) == len("deepseek-llm") - len("smollm")
    assert base.renamed_pre_tokenizer == "smollm"
    assert replace(base_file, pre_tokenizer_once_cut="gpt-2").renamed_pre_tokenizer is None
    for tokens, name in ((kept, "deepseek-llm"), (None, "smollm")):
        values = smaller_values(cut, {**cut.binding.shape, "vocab_size": 300}, tokens)
        assert next(value.value for value in values if value.key == PRE_TOKENIZER) == name


@pytest.mark.real
@pytest.mark.slow
def test_the_real_models_cut_vocabulary_has_the_predicted_bytes(tmp_path: Path) -> None:
    pytest.importorskip("conversion", reason="pip install 'optimum-ishrink[edge]'")
    base = demo_source()
    IShrinker(base).shrink(
        vocab_size=32768, calibration="pydoc", evaluate=False, benchmark=False, save_directory=tmp_path / "cut"
    )
    cut = open_source(tmp_path / "cut")
    write_exact_file(base, tmp_path / "base.gguf")
    write_exact_file(cut, tmp_path / "cut.gguf")
    template = read_template(tmp_path / "base.gguf", base.binding, name_once_cut(base.load_tokenizer()))
    types = {tensor.name: "q4_0" for tensor in template.tensors if tensor.is_matrix}
    general = template.general(cut.binding.shape)
    write_mixed_file(tmp_path / "cut.gguf", types, tmp_path / "q4_0.gguf", general=general)
    rows = np.asarray(read_plan(cut.folder).vocabulary.rows)
    file = read_tokenizer_file(base.folder)
    kept = KeptTokens(rows.tolist(), kept_merges(file, rows, find_splits(file)).tolist())
    expected = template.nbytes(cut.binding.shape, types, template.vocabulary_bytes(kept))
    assert (tmp_path / "q4_0.gguf").stat().st_size == expected


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
