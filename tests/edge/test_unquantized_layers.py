"""Which layers stay in 16 bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from optimum_ishrink.architectures.binding import Binding
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.core.json_files import write_json
from optimum_ishrink.edge.unquantized_layers import check_layers, layers_in_16_bits, read_analysis, sensitive_layers
from optimum_ishrink.errors import RequestError, SourceError
from optimum_ishrink.report.analysis import Analysis, LayerSensitivity
from optimum_ishrink.report.measurement import Measurement
from tests.helpers.records import make_environment


@pytest.fixture
def binding(edge_folder: Path) -> Binding:
    return open_source(edge_folder).binding


def _analysis(binding: Binding, divergences: tuple[float, ...]) -> Analysis:
    def measured(value: float) -> Measurement:
        return Measurement("kl_divergence", "text", value, 0.1, 4)

    layers = tuple(
        LayerSensitivity(i, measured(9 - value), measured(9 - value), measured(value))
        for i, value in enumerate(divergences)
    )
    kind = binding.description.model_type
    count = binding.num_parameters()
    return Analysis(
        "base", None, kind, count, {}, (), layers, (), 0.1, "advice", {}, (), "command", make_environment()
    )


def test_layers_that_do_not_exist() -> None:
    check_layers((3, 0), 4)
    for layers, wrong in (((0, 4), 4), ((-1, 2), -1)):
        with pytest.raises(RequestError, match=f"no layer {wrong}; its layers are 0 to 3"):
            check_layers(layers, 4)


def test_the_most_sensitive_layers_stay(binding: Binding, tmp_path: Path) -> None:
    analysis = _analysis(binding, (0.2, 3.0, 0.1, 1.0))
    assert sensitive_layers(analysis, 0.1) == (1,)
    assert sensitive_layers(analysis, 0.5) == (1, 3)
    write_json(tmp_path / "analysis.json", analysis.to_json())
    assert layers_in_16_bits(binding, (), None, 0.1) == ()
    assert layers_in_16_bits(binding, (3, 0), None, 0.1) == (0, 3)
    assert layers_in_16_bits(binding, (0,), tmp_path, 0.1) == (0, 1)
    assert layers_in_16_bits(binding, (), tmp_path / "analysis.json", 0.5) == (1, 3)


def test_analyses_that_do_not_fit(binding: Binding, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match=r"analysis.json does not exist"):
        read_analysis(tmp_path, binding)
    file = tmp_path / "analysis.json"
    file.write_text(json.dumps({"schema": 1, "request": {}}))
    with pytest.raises(SourceError, match=r"analysis.json: unknown entry of the analysis 'request'"):
        read_analysis(tmp_path, binding)
    write_json(file, _analysis(binding, (1.0, 2.0, 3.0)).to_json())
    with pytest.raises(RequestError, match="is about base, a llama of 3 layers; the model is a llama of 4"):
        read_analysis(tmp_path, binding)
    whole = _analysis(binding, (1.0, 2.0, 3.0, 4.0))
    write_json(file, replace(whole, model_type="qwen2").to_json())
    with pytest.raises(RequestError, match="a qwen2 of 4 layers"):
        read_analysis(tmp_path, binding)
    write_json(file, replace(whole, num_parameters=7).to_json())
    assert len(read_analysis(tmp_path, binding).sensitivity) == 4
    assert "about a model of 7 parameters" in capsys.readouterr().err
