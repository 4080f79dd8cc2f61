from __future__ import annotations

from pathlib import Path

import pytest

from optimum_ishrink.checkpoint.source import open_source


def test_the_licence_is_read_from_the_card(folder: Path) -> None:
    assert open_source(folder).license is None
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: llama3.2\n---\n# Hi\n")
    assert open_source(folder).license == "llama3.2"


@pytest.mark.parametrize(
    ("card", "languages"),
    [
        ("language: en", ("en",)),
        ("language: [en, fr]", ("en", "fr")),
        ("language:\n- no\n- en", ("no", "en")),  # YAML 1.1 takes it for false
        ("language:", ()),
        ("tags: [a]", ()),
    ],
)
def test_the_languages_are_read_from_the_card(folder: Path, card: str, languages: tuple[str, ...]) -> None:
    (folder / "README.md").write_text(f"---\n{card}\n---\n# Hi\n")
    assert open_source(folder).languages == languages


@pytest.mark.parametrize(
    ("card", "license", "details"),
    [
        (b"---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit", {}),
        (b"---\nlicense: []\n---\n", None, {}),
        (b"---\r\nlicense: mit\r\n---\r\n", "mit", {}),
        (
            b"---\nlicense: other\nlicense_name: qwen-research\nlicense_link: https://x.y/LICENSE\n---\n",
            "other",
            {"license_name": "qwen-research", "license_link": "https://x.y/LICENSE"},
        ),
        (b"---\ntags: [a]\n---\n\n```yaml\nlicense: mit\n```\n", None, {}),
        (b"license: mit\n", None, {}),
        (b"---\nlicense: mit\n---\ncaf\xe9", None, {}),
        (b"---\n[: {\n---\n", None, {}),
        (b"---\n- a\n---\n", None, {}),
    ],
)
def test_only_the_front_matter_of_a_card_counts(
    folder: Path, card: bytes, license: str | None, details: dict[str, str]
) -> None:
    (folder / "README.md").write_bytes(card)
    source = open_source(folder)
    assert (source.license, source.license_details) == (license, details)
    assert hash(source)
