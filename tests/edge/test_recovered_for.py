from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.edge.options import ExportOptions
from optimum_ishrink.edge.recovered_for import note_recovered_for
from optimum_ishrink.report.recovery import RecoveryRecord
from optimum_ishrink.report.report import ModelReport, Report
from optimum_ishrink.report.run import Run
from tests.helpers.edge_models import save_edge
from tests.helpers.records import make_environment, make_recovery

RECORD = make_recovery(
    trained="full", held_out_loss_before=0.3, held_out_loss=0.1, recovery_for="q4_0", held_out_loss_stored=0.15
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_edge(tmp_path_factory.mktemp("recovered") / "small")


def write(folder: Path, record: RecoveryRecord | None) -> None:
    Run(None, Report(None, ModelReport("small", 1, 1), make_environment(), recovery=record)).write(folder)


@pytest.mark.parametrize(
    ("trained", "options", "line"),
    [
        (
            "q4_0",
            {},
            "^small was recovered for q4_0: the nearest values are kept, which the training read .*0.1000 in q4_0",
        ),
        (
            "q4_0",
            {"rounding": "calibrated"},
            "^warning: .* gives it others, which were not trained; leave --rounding out",
        ),
        (
            "q4_0",
            {"quantization": "q8_0"},
            "^warning: small was recovered for q4_0, and this is q8_0: the held-out loss was 0.1000 in q4_0, and "
            "0.1500 before weights were quantised; expect to lose .* or recover it with --recovery-for q8_0$",
        ),
        (
            "int4",
            {"format": "safetensors", "quantization": "int4"},
            "^small was recovered for int4: the nearest values",
        ),
        (
            "int4",
            {"format": "safetensors", "quantization": "int4", "group_size": 64},
            "^warning: .* for int4 in groups of 32 in every layer .* leave out --group-size, --keep-layers",
        ),
    ],
)
def test_an_export_says_what_was_trained_for(
    folder: Path, trained: str, options: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, replace(RECORD, recovery_for=trained))
    note_recovered_for(open_source(folder), ExportOptions(**{"quantization": "q4_0", **options}))
    found = capsys.readouterr().err.strip()
    assert re.search(line, found), found
    assert "\n" not in found


def test_nothing_is_said_of_other_checkpoints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in (None, replace(RECORD, recovery_for=None), replace(RECORD, helped=False)):
        write(folder, record)
        note_recovered_for(open_source(folder), ExportOptions(quantization="q4_0"))
    (folder / "ishrink_report.json").unlink()
    note_recovered_for(open_source(folder), ExportOptions(quantization="q4_0"))
    assert not capsys.readouterr().err
