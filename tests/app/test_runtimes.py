"""The two builds of llama.cpp in the page: which one is chosen, and that both answer alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import SMALL, until
from tests.app.runtime_site import write_runtime_site
from tests.app.scripted import scripted_gguf
from tests.app.sites import serve, write_site
from tests.app.test_chat_page import SMALL_TEXT, answered, ask

Visit = Callable[..., Any]
Host = Callable[[Path], str]
Run = Callable[..., Any]

RUNTIMES = ("fast", "current")
TURNS = [{"role": "user", "content": "a river"}]


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of an architecture that the fast build does not know."""
    return scripted_gguf(tmp_path_factory.mktemp("newer") / "newer.gguf", SMALL, architecture="qwen3")


@pytest.fixture(scope="module")
def runtimes(page_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page that runs both builds."""
    folder = tmp_path_factory.mktemp("runtimes")
    spaced = scripted_gguf(folder / "spaced.gguf", ("\n", " The", "\n\n", " river", " "))
    letters = scripted_gguf(folder / "letters.gguf", (" Ω", "é", "𝄞", " end", "ing."))
    endless = scripted_gguf(folder / "endless.gguf", (" on", " and"), ending=False)
    refusing = scripted_gguf(
        folder / "refusing.gguf",
        SMALL,
        template="{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}",
    )
    models = {"spaced": spaced, "letters": letters, "endless": endless, "refusing": refusing}
    with serve(write_runtime_site(page_folder, models, folder / "site")) as address:
        yield address


@pytest.fixture
def run(visit: Visit, runtimes: str) -> Run:
    """Evaluates an expression in the page, with a model loaded in one of the builds."""

    def evaluate(runtime: str, model: str, expression: str, *, threads: int = 1, context: int = 256) -> Any:
        page = visit(runtimes)
        until(page, "!!globalThis.complete")
        assert page.evaluate(f"open('{runtime}', '{model}', {threads}, {context})") == threads
        found = page.evaluate(f"(async () => {{ return {expression}; }})()")
        page.close()
        return found

    return evaluate


def _facts(answer: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {name: answer[name] for name in ("text", "promptTokens", "newTokens", "ended")}


@pytest.mark.parametrize("model", ["spaced", "letters", "endless", "refusing"])
@pytest.mark.parametrize(
    "expression",
    [
        f"await chat({json.dumps(TURNS)})",
        f"await chat({json.dumps([{'role': 'system', 'content': 'be brief'}, *TURNS])})",
        "await complete('a river')",
        "await complete('a river', {}, ['er', 'nd'])",
        "await complete('a river', { maxNewTokens: 2 })",
        "await complete('a river', { maxNewTokens: 1000 })",
    ],
    ids=["chat", "system", "text", "stops", "length", "context"],
)
def test_both_answer_greedily_alike(run: Run, model: str, expression: str) -> None:
    fast, current = (_facts(run(runtime, model, expression)) for runtime in RUNTIMES)
    assert fast == current


def test_both_know_the_same_next_tokens(run: Run) -> None:
    fast, current = (run(runtime, "letters", "await engine.next('a river', 3)") for runtime in RUNTIMES)
    assert fast[0] == {"token": current[0]["token"], "text": " Ω", "probability": pytest.approx(1, abs=0.05)}
    for mine, other in zip(fast, current, strict=True):
        assert mine["probability"] == pytest.approx(other["probability"], rel=0.01)


def test_both_count_tokens_alike(run: Run) -> None:
    counts = [run(runtime, "letters", "await engine.countTokens('a river Ω')") for runtime in RUNTIMES]
    assert counts[0] == counts[1]


def test_a_seed_repeats_what_the_fast_one_samples(run: Run) -> None:
    hot = "{ temperature: 30, topK: 0, seed: %d, maxNewTokens: 8 }"
    texts = run(
        "fast",
        "endless",
        "[" + ", ".join(f"(await complete('a', {hot % seed})).text" for seed in (3, 3, 4, 0, 0, 4294967295, 3)) + "]",
    )
    assert texts[0] == texts[1] == texts[6]
    assert texts[3] == texts[4]
    assert len({*texts}) == 4


def test_the_fast_one_reads_only_what_is_new(run: Run) -> None:
    turns = [{"role": "user", "content": "a river " * 30}]
    later = [*turns, {"role": "assistant", "content": " on and"}, {"role": "user", "content": "b"}]
    read = """await (async () => {
      const found = [];
      for (const messages of CONVERSATIONS) {
        const reads = [];
        const sampling = { temperature: 0, topP: 1, topK: 1, minP: 0, repetitionPenalty: 1, maxNewTokens: 2 };
        const answer = await engine.chat(messages, sampling, () => {}, undefined, (...each) => reads.push(each));
        found.push([answer.text, answer.promptTokens, reads.length]);
      }
      return found;
    })()"""
    expression = read.replace("CONVERSATIONS", json.dumps([turns, later, turns]))
    first, second, third = run("fast", "endless", expression, context=512)
    assert first[2] > 2 > second[2]
    assert third == [first[0], first[1], 1]


def test_the_fast_one_uses_threads(run: Run) -> None:
    assert run("fast", "letters", "(await complete('a')).text", threads=2) == " Ωé𝄞 ending."


def test_what_is_unloaded_says_so(run: Run) -> None:
    said = run("fast", "endless", "await Promise.all([engine.time('a', 60).catch((e) => e.message), engine.close()])")
    assert said[0] == "the model was unloaded"


def test_an_architecture_that_the_fast_one_lacks(
    visit: Visit, host: Host, page_folder: Path, newer: Path, tiny_ggufs: dict[str, Path], tmp_path: Path
) -> None:
    folder = write_site(page_folder, [("shrunk", newer), ("base", tiny_ggufs["base"])], tmp_path / "site")
    site = json.loads((folder / "models.json").read_text())
    site["models"][0]["architecture"] = "qwen3"
    (folder / "models.json").write_text(json.dumps(site))
    page = visit("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(host(folder))
    ask(page)
    answered(page)
    assert page.locator(".answer.shrunk .answer-text").inner_text() == SMALL_TEXT
    assert not page.locator("#runtime-notice").is_visible()
    assert not any("fast" in url for url in asked), "both models have the same runtime"
    page.click("#open-settings")
    assert "the build that knows every architecture" in page.locator("#runtime-hint").inner_text()


def test_a_model_that_the_fast_one_does_not_load(
    visit: Visit, host: Host, page_folder: Path, newer: Path, tiny_ggufs: dict[str, Path], tmp_path: Path
) -> None:
    # The list says llama of both: the page learns it when it loads the second.
    models = [("shrunk", tiny_ggufs["shrunk"]), ("base", newer)]
    page = visit(host(write_site(page_folder, models, tmp_path / "site")))
    ask(page)
    answered(page)
    notice = page.locator("#runtime-notice").inner_text()
    assert notice.startswith("The faster build of llama.cpp did not load a model (") and "'qwen3'" in notice
    ask(page)
    answered(page, turns=2)
    assert page.locator(".answer .answer-text").all_inner_texts() == [SMALL_TEXT] * 4
    page.click("#open-settings")
    assert "the slower one for all models" in page.locator("#runtime-hint").inner_text()


@pytest.mark.parametrize("types, kept", [(["f32", "q4_0"], "fast"), (["f32", "mxfp4"], "wllama")])
def test_only_one_runtime_is_kept(
    visit: Visit,
    host: Host,
    page_folder: Path,
    tiny_ggufs: dict[str, Path],
    tmp_path: Path,
    types: list[str],
    kept: str,
) -> None:
    models = [("shrunk", tiny_ggufs["shrunk"])]
    page = visit(host(write_site(page_folder, models, tmp_path / "site", tensor_types=types)))
    page.wait_for_selector("html[data-offline=ready]", state="attached")
    names = page.evaluate(
        """(async () => {
             const found = [];
             for (const name of await caches.keys())
               for (const { url } of await (await caches.open(name)).keys()) found.push(new URL(url).pathname);
             return found.filter((name) => /wasm|_engine/.test(name));
           })()"""
    )
    expected = 3 if kept == "fast" else 2
    assert len(names) == expected
    assert all(("fast" in name) == (kept == "fast") for name in names)
