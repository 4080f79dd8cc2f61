"""How fast llama.cpp is in a browser, beside the native one with the same file and threads, in turn.

    python benchmarks/browser.py MODEL.gguf [MORE.gguf ...] [--threads 1,2] [--rounds 5] [--output browser.jsonl]
    python benchmarks/browser.py --table browser.jsonl

The browser runs the build of llama.cpp that a page chooses for the file; `--runtime current` asks for the other one.
Needs `make app`, Chromium and playwright. In a round the native process and a fresh worker of a headless Chromium each
read a prompt of 64 tokens and decode 32 more. Beside the clock's times there are those that the processor took (of all
processes of the browser), in which other processes on the machine do not count.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
from playwright.sync_api import Page, sync_playwright

from optimum_ishrink.app.model_file import read_model_file
from optimum_ishrink.core.table import markdown_table
from optimum_ishrink.edge.gguf_file import read_gguf
from optimum_ishrink.edge.worker_process import MARGIN, WorkerProcess

ROOT = Path(__file__).parents[1]
PROMPT, NEW_TOKENS = 64, 32
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]

_HARNESS = """
import { Engine } from "%s/engine";
import { chooseRuntime } from "%s/runtime_choice";
chooseRuntime([%s]);
Object.assign(globalThis, {
  load: async (threads, contextTokens) => {
    const file = await (await fetch("model.gguf", { cache: "no-store" })).blob();
    globalThis.engine = await Engine.open(file, { threads, contextTokens, gpu: false });
    globalThis.prompt = await engine.textOfTokens(%d);
    await engine.time(prompt.text, 4);
    const { runtime, threads: used, loadSeconds, startSeconds } = engine;
    return { runtime, load_seconds: loadSeconds, start_seconds: startSeconds, threads: used };
  },
  first: () => engine.time(prompt.text, 1),
  whole: () => engine.time(prompt.text, %d),
  close: () => engine.close(),
});
"""


class _Handler(SimpleHTTPRequestHandler):
    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def served(model: Path, runtime: str) -> Iterator[str]:
    """Serve a page that runs the engine of the site with one file, and yield its address."""
    page = ROOT / "optimum_ishrink" / "app" / "page"
    versions = json.loads((page / "page.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(page / "wasm", folder / "wasm")
        (folder / "model.gguf").symlink_to(model.resolve())
        harness = folder / "harness.ts"
        source, entry = ROOT / "app" / "src", json.dumps(_listed(model, runtime))
        harness.write_text(_HARNESS % (source, source, entry, PROMPT, NEW_TOKENS), encoding="utf-8")
        defined = {
            "PAGE_VERSION": "version",
            "WLLAMA_VERSION": "wllama",
            "LLAMA_CPP_BUILD": "llama_cpp",
            "WLLAMA_FAST_VERSION": "wllama_fast",
            "LLAMA_CPP_FAST_BUILD": "llama_cpp_fast",
        }
        constants = [f"--define:{constant}={json.dumps(versions[key])}" for constant, key in defined.items()]
        esbuild = ROOT / "app" / "node_modules" / ".bin" / "esbuild"
        command = [esbuild, harness, "--bundle", "--format=esm", f"--outfile={folder / 'harness.js'}", *constants]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        (folder / "index.html").write_text("<!doctype html><script type=module src=harness.js></script>")
        handler = functools.partial(_Handler, directory=str(folder))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/index.html"
            server.shutdown()


def _listed(model: Path, runtime: str) -> dict[str, Any]:
    """Return what a site lists of a file, or what makes the page choose the current build."""
    facts = {**read_model_file(model).to_json(), "bytes": model.stat().st_size}
    return facts if runtime == "chosen" else {**facts, "architecture": "unknown to the fast build"}


def processor_seconds() -> float:
    """Return what the browser's processes have computed so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" in process.name():
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def in_browser(page: Page, threads: int) -> dict[str, Any]:
    """Load the file in a fresh worker, and time one answer."""
    loaded = page.evaluate(f"load({threads}, {PROMPT + NEW_TOKENS + MARGIN})")
    start = processor_seconds()
    page.evaluate("first()")
    middle = processor_seconds()
    found = page.evaluate("whole()")
    end = processor_seconds()
    page.evaluate("close()")
    # The second answer decodes more tokens after the same prompt.
    decode = (NEW_TOKENS - 1) / max(1e-9, (end - middle) - (middle - start))
    return {
        **loaded,
        "first": found["firstTokenSeconds"],
        "decode": found["decodeTokensPerSecond"],
        "processor": {"decode": decode, "first": middle - start - 1 / decode},
    }


def native(model: Path, threads: int, vocabulary: int) -> dict[str, Any]:
    """Time one answer of the native llama.cpp."""
    request = {
        "task": "measure",
        "model": str(model),
        "threads": threads,
        "lengths": [PROMPT],
        "new_tokens": NEW_TOKENS,
        "vocabulary": vocabulary,
        "context": PROMPT + NEW_TOKENS + MARGIN,
    }
    with WorkerProcess(request) as process:
        return {**process.first, **process.ask({"length": PROMPT})}


def measure(args: argparse.Namespace) -> None:
    """Run the rounds, and write a line for each."""
    with sync_playwright() as driver, Path(args.output).open("a", encoding="utf-8") as output:
        browser = driver.chromium.launch(executable_path=args.browser, args=ARGUMENTS)
        for model in map(Path, args.models):
            vocabulary = read_gguf(model).vocabulary
            with served(model, args.runtime) as address:
                page = browser.new_page()
                page.set_default_timeout(600_000)
                page.goto(address)
                page.wait_for_function("!!globalThis.load")
                for number in range(args.rounds):
                    for threads in map(int, args.threads.split(",")):
                        row: dict[str, Any] = {"model": model.name, "threads": threads}
                        for name in ("native", "browser")[:: -1 if number % 2 else 1]:
                            row[name] = (
                                native(model, threads, vocabulary) if name == "native" else in_browser(page, threads)
                            )
                        output.write(json.dumps(row) + "\n")
                        output.flush()
                        clocks = f"{row['browser']['decode']:.1f} and natively {row['native']['decode']:.1f} tokens/s"
                        sys.stderr.write(f"{model.name}, {threads} threads: {clocks}\n")
                page.close()
        browser.close()
    print_table(Path(args.output))


def print_table(file: Path) -> None:
    """Print medians and quartiles, and the browser's share of the native speed."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    cells = []
    for model, threads in dict.fromkeys((row["model"], row["threads"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["threads"]) == (model, threads)]
        for title, *path in (
            ("decode, tokens/s", "decode"),
            ("decode, tokens per processor second", "processor", "decode"),
            ("first token, s", "first"),
            ("first token, processor seconds", "processor", "first"),
            ("load, s", "load_seconds"),
        ):
            values = {name: [_read(row[name], path) for row in mine] for name in ("native", "browser")}
            share = median(values["browser"]) / median(values["native"])
            texts = [_spread(values[name]) for name in ("native", "browser")]
            cells.append((model, str(threads), title, *texts, f"{share:.2f}"))
    header = ("file", "threads", "figure", "native", "browser", "browser / native")
    print(markdown_table(header, cells))


def _read(found: Any, keys: list[str]) -> float:
    for key in keys:
        found = found[key]
    return float(found)


def _spread(values: list[float]) -> str:
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return f"{median(values):.3g} [{low:.3g}, {high:.3g}]"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="GGUF files")
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", choices=("chosen", "current"), default="chosen", help="the build of llama.cpp")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="the program of a Chromium")
    parser.add_argument("--output", default="browser.jsonl", help="a line for each round")
    parser.add_argument("--table", metavar="FILE", help="only print the table of an earlier run's output")
    args = parser.parse_args()
    if args.table:
        print_table(Path(args.table))
    elif not args.models:
        parser.error("name GGUF files")
    else:
        measure(args)


if __name__ == "__main__":
    main()
