"""A derived model inherits the licence and gating terms of its base."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from optimum_ishrink.errors import RequestError
from optimum_ishrink.hub.push import push_folder
from tests.helpers.hub_endpoints import Commit, Repo
from tests.helpers.hub_server import HubServer

GATED = """---
license: other
license_name: llama3.2
license_link: LICENSE.txt
extra_gated_prompt: "### Agreement: 'yes'"
extra_gated_fields:
  Country: country
  I agree: checkbox
---
# Base
"""


def publish_base(server: HubServer, card: str, gated: str | bool = False) -> None:
    server.repos["org/base"] = Repo(commits=[Commit("b" * 40, "Base", {"README.md": card.encode()})], gated=gated)


def write_card(folder: Path, metadata: str, body: str = "# A model\n") -> str:
    text = f"---\n{metadata}---\n{body}"
    (folder / "README.md").write_text(text)
    return text


def pushed_card(server: HubServer) -> str:
    return server.repos["me/small"].head.files["README.md"].decode()


def metadata(card: str) -> dict[str, object]:
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_licence_and_terms_of_a_gated_base_are_added_and_noted(
    server: HubServer,
    folder: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    publish_base(server, GATED, "manual")
    before = write_card(folder, "base_model: org/base\ntags: [pruned]  # comment\nlicense: null\n")
    push_folder(folder, "me/small")
    card = pushed_card(server)
    assert metadata(card) == {"base_model": "org/base", "tags": ["pruned"], **metadata(GATED)}
    assert "tags: [pruned]  # comment\n" in card and card.endswith("---\n# A model\n")
    assert (folder / "README.md").read_text() == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("org/base is gated: its licence (llama3.2) and its terms hold for this model as well")
    assert line.endswith("hf repos settings me/small --gated manual")
    assert server.repos["me/small"].gated is False


def test_the_licence_of_a_gated_base_is_not_overridden(server: HubServer, folder: Path) -> None:
    publish_base(server, GATED, "auto")
    write_card(folder, "base_model: [org/base]\nlicense: mit\n")
    message = "README.md says license: mit, but org/base says license: other, and is gated: a derived model inherits"
    with pytest.raises(RequestError, match=message):
        push_folder(folder, "me/small")
    assert "me/small" not in server.repos
    write_card(folder, "base_model: org/base\nlicense: other\nlicense_name: mine\n")
    with pytest.raises(RequestError, match="says license_name: mine, but org/base says license_name: llama3.2"):
        push_folder(folder, "me/small")


def test_a_licence_that_differs_from_an_open_bases_is_noted(
    server: HubServer,
    folder: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    publish_base(server, GATED)
    text = write_card(folder, "base_model: org/base\nlicense: mit\n")
    push_folder(folder, "me/small")
    err = capsys.readouterr().err
    assert err == "README.md says license: mit, but org/base says license: other; the card's is published\n"
    # The name of one licence is not added to another.
    assert "license_name" not in metadata(pushed_card(server)) and metadata(text)["license"] == "mit"


def test_a_complete_card_is_left_as_it_is(
    server: HubServer,
    folder: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    publish_base(server, "---\nlicense: apache-2.0\n---\n")
    text = write_card(folder, "license: apache-2.0\nbase_model: org/base\n")
    push_folder(folder, "me/small")
    assert pushed_card(server) == text
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("base", ["org/hidden", "a/b/c", "./folder"])
def test_a_base_that_is_not_on_the_hub(
    server: HubServer,
    folder: Path,
    capsys: pytest.CaptureFixture,
    base: str,
) -> None:
    text = write_card(folder, f"license: mit\nbase_model: {base}\n")
    push_folder(folder, "me/small")
    assert pushed_card(server) == text
    note = capsys.readouterr().err
    assert note.startswith("org/hidden cannot be read on the Hub, so") if base == "org/hidden" else note == ""


@pytest.mark.parametrize(
    ("text", "message"), [("base_model: {", "is not YAML"), ("- a list", "is not a list of `key: v")]
)
def test_metadata_that_cannot_be_read(server: HubServer, folder: Path, text: str, message: str) -> None:
    write_card(folder, f"{text}\n")
    with pytest.raises(RequestError, match=message):
        push_folder(folder, "me/small")
    assert server.repos == {}


@pytest.mark.parametrize("text", ["# No metadata\n", "---\n\n---\n"])
def test_a_card_without_metadata(server: HubServer, folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text)
    push_folder(folder, "me/small")
    assert pushed_card(server) == text
