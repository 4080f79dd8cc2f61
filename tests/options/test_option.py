"""One option is one field: attribute, flag, YAML key, saved key, check and reference page follow from it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import optimum_ishrink
from optimum_ishrink import IShrinkConfig, RequestError
from optimum_ishrink.analysis.options import AnalysisOptions
from optimum_ishrink.hub.options import PushOptions
from optimum_ishrink.options.base import Options
from optimum_ishrink.options.checks import clean
from optimum_ishrink.options.option import Option, option, options_of, own_options

PACKAGE = Path(optimum_ishrink.__file__).parent
ROOT = PACKAGE.parent


def test_a_new_option_is_one_field(tmp_path: Path) -> None:
    for folder in ("optimum_ishrink", "docs", "configs", "model_cards"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    stage = tmp_path / "optimum_ishrink" / "importance" / "options.py"
    text = stage.read_text(encoding="utf-8")
    field = '    importance_made_up: int = option(3, ge=2, help="an option that a test adds")\n\n    def check_'
    stage.write_text(text.replace("    def check_", field, 1), encoding="utf-8")
    script = """
import json, runpy, sys
from optimum_ishrink import IShrinkConfig
from optimum_ishrink.cli.flags import given
from optimum_ishrink.cli.parser import Parser, add_verbs
assert "torch" not in sys.modules
assert IShrinkConfig().importance_made_up == 3
open("r.yaml", "w").write("importance_made_up: 5\\n")
assert IShrinkConfig.from_yaml("r.yaml").importance_made_up == 5
parser = Parser(prog="ishrink")
add_verbs(parser)
args = parser.parse_args(["plan", "--importance-made-up", "7"])
config = IShrinkConfig(**given(args, IShrinkConfig))
assert config.importance_made_up == 7 and "--importance-made-up 7" in config.command("m", "o")
config.save_pretrained("out")
assert json.load(open("out/ishrink_config.json"))["importance_made_up"] == 7
assert IShrinkConfig.from_pretrained("out") == config
near = "did you mean 'importance_made_up'"
for wrong, words in (({"importance_made_up": 1}, "at least 2"), ({"importance_make_up": 3}, near)):
    try:
        IShrinkConfig(**wrong)
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(wrong)
page = runpy.run_path("docs/configuration_page.py")["configuration_page"]()
assert "`importance_made_up`" in page and "An option that a test adds." in page
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_default_is_allowed() -> None:
    for entry in options_of(IShrinkConfig).values():
        other = Option(entry.name, entry.kind, entry.optional, object(), entry.spec)
        assert clean(other, entry.default) == entry.default, entry.name


def test_options_come_in_the_order_of_their_classes() -> None:
    @dataclass(frozen=True, kw_only=True, repr=False)
    class First(Options):
        one: int = option(1, help="one")

    @dataclass(frozen=True, kw_only=True, repr=False)
    class Second(Options):
        two: float | None = option(None, gt=0, help="two")

    @dataclass(frozen=True, kw_only=True, repr=False)
    class Both(First, Second):
        three: bool = option(True, help="three")

    assert list(options_of(Both)) == ["three", "one", "two"]
    assert list(own_options(Both)) == ["three"]
    assert [entry.flag for entry in options_of(Both).values()] == ["--no-three", "--one", "--two"]
    assert repr(Both(two=2)) == "Both(two=2)"
    assert Both(one=2).replace(two=1.5) == Both(one=2, two=1.5)
    assert hash(Both()) == hash(Both())
    with pytest.raises(RequestError, match="two must be a number above 0, not 0"):
        Both(two=0)
    with pytest.raises(RequestError, match="unknown config key 'tow' .did you mean 'two'"):
        Both().replace(tow=1)


def test_a_class_names_the_kind_of_its_options() -> None:
    with pytest.raises(RequestError, match="unknown option 'privat' .did you mean 'private'"):
        PushOptions(privat=True)
    with pytest.raises(RequestError, match="unknown option 'level' .did you mean 'levels'"):
        AnalysisOptions(level=[10])
    with pytest.raises(RequestError, match="unknown config key 'privat'"):
        IShrinkConfig(privat=True)


def test_an_unsupported_type_is_a_programming_error() -> None:
    @dataclass(frozen=True, kw_only=True, repr=False)
    class Odd(Options):
        table: dict[str, int] | None = option(None, help="a table")  # noqa: RUF009

    with pytest.raises(TypeError, match="an option cannot have the type"):
        options_of(Odd)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": "0,60"}, "levels must be numbers such as 0,10,25, each at least 0 and at most 50, not '0,60'"),
        ({"levels": "ten"}, "levels must be numbers"),
        ({"levels": [True]}, "levels must be numbers"),
        ({"levels": []}, "levels must be numbers"),
        ({"levels": 0}, "levels must hold one above 0"),
        ({"analysis_length": 1}, "analysis_length must be a whole number of at least 2, not 1"),
        ({"max_divergence": 0}, "max_divergence must be a number above 0, not 0"),
        ({"max_divergence": float("nan")}, "max_divergence must be a number above 0, not nan"),
        ({"analysis_text": ""}, "analysis_text must be a list of names"),
    ],
)
def test_lists_of_numbers(values: dict[str, object], message: str) -> None:
    from optimum_ishrink.analysis.options import AnalysisOptions

    with pytest.raises(RequestError, match=message):
        AnalysisOptions(**values)


def test_levels_are_a_list_or_a_string() -> None:
    from optimum_ishrink.analysis.options import AnalysisOptions

    for written in ("10, 0,25", [10, 0, 25.0], (10.0, 0.0, 25.0)):
        assert AnalysisOptions(levels=written).shares == (0.0, 0.1, 0.25)
    assert AnalysisOptions(levels=5).percentages == (0.0, 5.0)


def test_flags_and_saved_configs_have_not_changed() -> None:
    """Golden files from before each option had a field: names, values and recipes have the same meaning."""
    from tests.helpers.golden import flags

    golden = Path(__file__).parents[1] / "golden"
    before = json.loads((golden / "flags.json").read_text())
    now = flags()
    for verb, names in before.items():
        assert set(names) <= set(now[verb]), verb
    for name, values in json.loads((golden / "recipes.json").read_text()).items():
        config = IShrinkConfig.from_yaml(ROOT / "configs" / f"{name}.yaml").to_dict()
        assert values.items() <= config.items(), name
