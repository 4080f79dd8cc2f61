from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.edge_models import save_edge


@pytest.fixture(scope="session")
def edge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that can be exported; its rows are multiples of 32."""
    return save_edge(tmp_path_factory.mktemp("edge") / "tiny")
