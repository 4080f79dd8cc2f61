from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimum_ishrink.errors import SourceError
from optimum_ishrink.report.search import SEARCH_FILE, SearchRecord
from optimum_ishrink.search.profile import Profile


def test_records_of_other_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        SearchRecord.read(tmp_path)
    for contents in ({"schema": 99}, []):
        (tmp_path / SEARCH_FILE).write_text(json.dumps(contents))
        with pytest.raises(SourceError, match="is of another version"):
            SearchRecord.read(tmp_path)
        with pytest.raises(SourceError, match="is not a profile that this version wrote"):
            Profile.read(tmp_path / SEARCH_FILE)
