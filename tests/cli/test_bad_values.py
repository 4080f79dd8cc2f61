"""Every flag of every verb refuses a bad value in one line that names it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.analysis.options import AnalysisOptions
from optimum_ishrink.app.options import AppOptions, ServerOptions
from optimum_ishrink.chat.options import ChatOptions
from optimum_ishrink.cli.parser import Parser, add_verbs
from optimum_ishrink.edge.options import ExportOptions, RuntimeOptions
from optimum_ishrink.hub.options import PushOptions
from optimum_ishrink.options.option import Option, options_of
from tests.helpers.refusals import refusal

OPTIONS: dict[str, Option] = {}
for options in (
    PushOptions,
    RuntimeOptions,
    ExportOptions,
    AnalysisOptions,
    AppOptions,
    ServerOptions,
    ChatOptions,
    IShrinkConfig,
):
    OPTIONS.update(options_of(options))


def bad_values(option: Option) -> Iterator[str]:
    spec = option.spec
    if option.kind in ("int", "ints"):
        yield from ("many", "1.5", "", str((1 if spec.ge is None else int(spec.ge)) - 1))
    elif option.kind in ("float", "floats"):
        yield from ("x", "nan", "inf", "")
        for bound, step in ((spec.ge, -1), (spec.gt, 0), (spec.lt, 0), (spec.le, 1)):
            if bound is not None:
                yield f"{bound + step:g}"
    elif option.kind == "strings":
        yield from ("", ",", "a,,b")
    elif option.kind == "bool":
        yield "1"
    elif spec.path == "teachers":  # anything else can be the name of a model
        yield ""
    elif spec.allowed is not None or spec.check is not None:
        yield from ("nonsense", "")


def requests() -> Iterator[tuple[str, str, str]]:
    parser = Parser(prog="ishrink")
    add_verbs(parser)
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for verb, flags in verbs.choices.items():
        for action in flags._actions:
            if action.dest in OPTIONS:
                for value in bad_values(OPTIONS[action.dest]):
                    yield verb, action.dest, f"{action.option_strings[0]}={value}"


REQUESTS = sorted(set(requests()))


def test_there_are_many() -> None:
    assert len(REQUESTS) > 500


@pytest.mark.parametrize("verb", sorted({verb for verb, _, _ in REQUESTS}))
def test_a_bad_value_is_refused_in_one_line(
    verb: str, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [verb, *([] if verb == "demo" else ["--model", str(llama_folder)])]
    if verb in ("shrink", "recover", "analyze", "search", "profile", "demo", "export", "app"):
        words += ["--output", str(tmp_path / "out.gguf")]
    if verb == "push":
        words += ["--repo-id", "me/x"]
    for name, flag in sorted((name, flag) for each, name, flag in REQUESTS if each == verb):
        shape = ["--intermediate-size", "16"] if verb in ("shrink", "plan") and name != "intermediate_size" else []
        found = refusal([*words, *shape, flag], capsys)
        option = OPTIONS[name]
        names = (flag.split("=")[0], name, option.label, "loss", "set of parameters")
        assert any(word in found for word in names), (flag, found)
        assert not any(tmp_path.iterdir()), flag
