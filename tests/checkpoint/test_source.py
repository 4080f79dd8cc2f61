from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink.checkpoint.source import load_model, load_tokenizer, open_source, stored_names
from optimum_ishrink.errors import ArchitectureError, SourceError
from tests.helpers.tiny import edit_json, save_tiny, tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama_folder, tmp_path / "model")


def test_one_file_and_shards_give_the_same_tensors(tmp_path: Path) -> None:
    config = tiny_config("qwen2")
    one = open_source(save_tiny(tmp_path / "one", config))
    many = open_source(save_tiny(tmp_path / "many", config, max_shard_size="20KB"))
    assert len({info.file for info in many.tensors.values()}) > 3
    assert {n: (i.shape, i.dtype) for n, i in one.tensors.items()} == {
        n: (i.shape, i.dtype) for n, i in many.tensors.items()
    }
    assert one.nbytes == many.nbytes == one.binding.num_parameters() * 4


def test_a_model_in_memory() -> None:
    model, tokenizer = tiny_model(tiny_config("llama")), tiny_tokenizer()
    source = open_source(model, tokenizer=tokenizer)
    assert source.notes == ("saved from a model in memory",)
    again = source.load_model(torch.float32, torch.device("cpu"))
    ids = torch.arange(3, 9)[None]
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert source.load_tokenizer()("abc")["input_ids"] == tokenizer("abc")["input_ids"]
    place = source.folder
    del source
    assert not place.exists()
    with pytest.raises(SourceError, match="needs its tokenizer"):
        open_source(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "does not exist"),
        ("a/b/c", "does not exist"),
        ("nobody/nothing", "not a local folder, not in the cache, and the Hub cannot be reached"),
        ("no spaces allowed", "nor a valid Hub id"),
    ],
)
def test_models_that_are_not_there(name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(name)


def test_a_file_of_a_checkpoint_is_not_the_checkpoint(folder: Path) -> None:
    with pytest.raises(
        SourceError, match=f"model.safetensors is a file; give the folder .* such as {re.escape(str(folder))}$"
    ):
        open_source(folder / "model.safetensors")


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


def test_folders_that_are_no_model(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no config.json$"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="it holds m.gguf: pass it as gguf_file"):
        open_source(tmp_path / "empty")
    with pytest.raises(SourceError, match="give its folder as the model and pass gguf_file='m.gguf'"):
        open_source(tmp_path / "empty" / "m.gguf")
    (folder / "config.json").write_text("[]")
    with pytest.raises(SourceError, match="not a JSON object"):
        open_source(folder).binding  # noqa: B018


def test_a_gguf_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not at all")
    with pytest.raises(SourceError, match="cannot read .*m.gguf as GGUF"):
        open_source(tmp_path, gguf_file="m.gguf")
    with pytest.raises(SourceError, match="holds no 'x.gguf'; GGUF files there: m.gguf"):
        open_source(tmp_path, gguf_file="x.gguf")


@pytest.mark.parametrize("named", [False, True])
def test_a_gguf_brings_its_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    if named:
        writer.add_license("other")
        writer.add_license_name("mine")
        writer.add_license_link("https://x.y")
        writer.add_languages(["en", "fr"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\nlicense_name: card's\nlanguage: de\n---\n")
    asked = []

    def tokenizer(*_: object, **kwargs: object) -> object:
        asked.append(kwargs)
        return tiny_tokenizer()

    model = tiny_model(tiny_config("llama"))
    monkeypatch.setattr(
        "optimum_ishrink.checkpoint.source.AutoModelForCausalLM.from_pretrained", lambda *_, **__: model
    )
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.AutoTokenizer.from_pretrained", tokenizer)
    source = open_source(tmp_path, gguf_file="m.gguf")
    assert source.gguf_file == "m.gguf"
    assert source.languages == (("en", "fr") if named else ("de",))
    assert asked == [{"gguf_file": "m.gguf", "trust_remote_code": False}]
    if named:
        assert source.license == "other"
        assert source.license_details == {"license_name": "mine", "license_link": "https://x.y"}
    else:
        assert (source.license, source.license_details) == ("llama3.2", {"license_name": "card's"})


def test_files_that_do_not_fit_the_config(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="lacks 1 tensors that its config expects: model.norm.weight"):
        open_source(folder).tensors  # noqa: B018
    save_file(
        {**tensors, "model.norm.weight": norm, "odd": norm.clone()}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(SourceError, match="holds 1 tensors that its config does not expect: odd"):
        open_source(folder).tensors  # noqa: B018
    save_file({**tensors, "model.norm.weight": norm[:5].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"model.norm.weight as \[5\]; its config expects \[32\]"):
        open_source(folder).tensors  # noqa: B018


def test_loading_says_what_does_not_fit(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="missing_keys model.norm.weight"):
        load_model(folder, torch.float32, torch.device("cpu"))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_model(tiny_config("llama")).save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="holds no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_several_submodules_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llava", text_config={"model_type": "llama"})
    with pytest.raises(ArchitectureError, match=r"'llava' is made of several models \(text_config\)"):
        open_source(folder).binding  # noqa: B018


def test_the_hub_client_is_asked_for_what_is_needed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    commit = folder.rename(folder.parent / ("a1" * 20))
    asked: dict[str, object] = {}

    def download(repo_id: str, **kwargs: object) -> str:
        asked.update(kwargs, repo_id=repo_id)
        return str(commit)

    monkeypatch.setattr("optimum_ishrink.checkpoint.source.snapshot_download", download)
    source = open_source("org/model", revision="main", token="hf_secret")
    assert (source.name, source.revision, source.is_hub_id) == ("org/model", "a1" * 20, True)
    assert asked["token"] == "hf_secret"
    assert "hf_secret" not in repr(source)
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])  # type: ignore[attr-defined]

    response = type("Response", (), {"headers": {}, "request": None, "status_code": 404})()
    for error, message in (
        (GatedRepoError, "it is gated; accept its terms"),
        (RepositoryNotFoundError, "nor a Hub repository that you can read"),
        (RevisionNotFoundError, "no revision 'main'"),
    ):

        def fail(repo_id: str, error: type = error, **kwargs: object) -> str:
            raise error("no", response=response)

        monkeypatch.setattr("optimum_ishrink.checkpoint.source.snapshot_download", fail)
        with pytest.raises(SourceError, match=message):
            open_source("org/model", revision="main")


def test_what_the_system_or_a_dropped_connection_says_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = type("RemoteProtocolError", (Exception,), {"__module__": "httpx2"})
    for error, message in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("no errno"), "the Hub cannot be reached"),
        (dropped("Server disconnected\nwithout a word"), r"broke \(Server disconnected without a word\); try again"),
        (dropped(), r"broke \(RemoteProtocolError\)"),
    ):

        def fail(repo_id: str, error: Exception = error, **_: object) -> str:
            raise error

        monkeypatch.setattr("optimum_ishrink.checkpoint.source.snapshot_download", fail)
        with pytest.raises(SourceError, match=message) as caught:
            open_source("org/model")
        assert "\n" not in str(caught.value)

    def broken(repo_id: str, **_: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("optimum_ishrink.checkpoint.source.snapshot_download", broken)
    with pytest.raises(ZeroDivisionError):
        open_source("org/model")


def test_a_hub_repository_of_pickles_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def files(api: object, repo_id: str, *, revision: str | None) -> list[str]:
        asked.append((repo_id, revision))
        return ["config.json", "original/consolidated.00.pth"]

    def unreachable(api: object, repo_id: str, *, revision: str | None) -> list[str]:
        raise ConnectionError

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.HfApi.list_repo_files", files)
    with pytest.raises(SourceError, match="org/model holds its weights only as pickle .*consolidated.00.pth"):
        open_source("org/model", revision="v1")
    assert asked == [("org/model", "v1")]
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.HfApi.list_repo_files", unreachable)
    open_source("org/model")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("optimum_ishrink.checkpoint.source.HfApi.list_repo_files", files)
    open_source("org/model")
    assert len(asked) == 1


def test_second_copies_of_the_weights_are_not_downloaded(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, list[str]] = {}

    def download(repo_id: str, **kwargs: list[str]) -> str:
        asked.update(kwargs)
        return str(folder)

    monkeypatch.setattr("optimum_ishrink.checkpoint.source.snapshot_download", download)
    open_source("org/model")
    names = ["consolidated.safetensors", "consolidated.safetensors.index.json", "original/params.json", "a.bin"]
    kept = ["model.safetensors", "config.json", "README.md"]
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*names, *kept], **patterns)) == kept


def test_the_tokenizers_own_code_is_never_run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked = []
    monkeypatch.setattr(
        "optimum_ishrink.checkpoint.source.AutoTokenizer.from_pretrained", lambda *_, **kwargs: asked.append(kwargs)
    )
    load_tokenizer(folder)
    assert asked == [{"trust_remote_code": False}]


@pytest.mark.parametrize(
    ("model_type", "variant", "head"), [("llama", 1, "lm_head.weight"), ("gpt_neox", 0, "embed_out.weight")]
)
def test_a_stored_head_must_be_the_embedding_that_it_is_tied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, variant: int, head: str
) -> None:
    monkeypatch.setattr("optimum_ishrink.checkpoint.source._COMPARED", 1000)
    folder = save_tiny(tmp_path / "m", tiny_config(model_type, variant, tie_word_embeddings=True))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "embed" in name)
    assert head not in tensors
    tensors[head] = tensors[name].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert head not in open_source(folder).tensors
    tensors[head][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=f"holds {head} with other values than {name}, but its config ties them"):
        open_source(folder).tensors  # noqa: B018
    tensors[head] = tensors[name].bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="with other values"):
        open_source(folder).tensors  # noqa: B018


def test_names_without_the_base_models_prefix() -> None:
    expected = ["model.a.weight", "model.b.weight", "lm_head.weight", "model.lm_head.weight"]
    assert stored_names(expected, ["a.weight", "model.b.weight", "b.weight", "lm_head.weight"]) == {
        "model.a.weight": "a.weight",
        "model.b.weight": "model.b.weight",
        "lm_head.weight": "lm_head.weight",
        "model.lm_head.weight": "model.lm_head.weight",
    }


def test_a_checkpoint_saved_from_a_base_model(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config("gpt2"))
    before = open_source(folder)
    ids, cpu = torch.arange(3, 9)[None], torch.device("cpu")
    logits = before.load_model(torch.float32, cpu)(ids).logits
    names = list(before.tensors)
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(folder / "model.safetensors").items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)  # the causal mask that old versions saved
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    after = open_source(folder)
    assert list(after.tensors) == names
    assert torch.equal(after.load_model(torch.float32, cpu)(ids).logits, logits)
    save_file({**tensors, "h.0.odd": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match="does not expect: h.0.odd"):
        open_source(folder).tensors  # noqa: B018


def test_a_quantised_or_remote_config_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(SourceError, match="already quantised"):
        open_source(folder).binding  # noqa: B018
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {}}))
    with pytest.raises(ArchitectureError, match="remote code"):
        open_source(folder).binding  # noqa: B018
