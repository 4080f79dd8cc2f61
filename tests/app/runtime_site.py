"""A page without controls that runs both runtimes of the site, for tests that compare them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.app.test_timing_cases import APP, ESBUILD

CONSTANTS = ("PAGE_VERSION", "WLLAMA_VERSION", "LLAMA_CPP_BUILD", "WLLAMA_FAST_VERSION", "LLAMA_CPP_FAST_BUILD")

_HARNESS = """
import { CurrentEngine } from "%(source)s/current_engine";
import { FastEngine } from "%(source)s/fast_engine";
const greedy = { temperature: 0, topP: 1, topK: 40, minP: 0, repetitionPenalty: 1, maxNewTokens: 24, seed: null };
Object.assign(globalThis, {
  open: async (runtime, name, threads = 1, contextTokens = 256) => {
    const file = await (await fetch(name)).blob();
    const kind = { fast: FastEngine, current: CurrentEngine }[runtime];
    globalThis.engine = await kind.open(file, { threads, contextTokens, gpu: false });
    globalThis.pieces = [];
    return engine.threads;
  },
  complete: (prompt, sampling = {}, stop = []) =>
    engine.complete(prompt, { ...greedy, ...sampling }, (piece) => pieces.push(piece), undefined, stop),
  chat: (messages, sampling = {}) => engine.chat(messages, { ...greedy, ...sampling }, (piece) => pieces.push(piece)),
});
"""


def write_runtime_site(page: Path, models: Mapping[str, Path], folder: Path) -> Path:
    """Write the page, the runtimes' files and the models, and return the folder. Skips where esbuild is missing."""
    if not ESBUILD.is_file() or shutil.which("node") is None:
        pytest.skip("app/node_modules is missing: run `make app`")
    shutil.copytree(page / "wasm", folder / "wasm")
    for name, path in models.items():
        shutil.copyfile(path, folder / name)
    script = folder / "harness.ts"
    script.write_text(_HARNESS % {"source": APP / "src"}, encoding="utf-8")
    defined = [f"--define:{name}={json.dumps(name)}" for name in CONSTANTS]
    options = ["--bundle", "--format=esm", "--target=es2022", f"--outfile={folder / 'harness.js'}", *defined]
    subprocess.run([ESBUILD, str(script), *options], check=True, capture_output=True)
    (folder / "index.html").write_text(
        "<!doctype html><title>runtimes</title><link rel=icon href=data:,><script type=module src=harness.js></script>"
    )
    return folder
