"""`plan --shape-only`: it reads no weights, and accepts no shape that `shrink` refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from safetensors.torch import load_file, save_file

from optimum_ishrink.checkpoint.config_source import open_config
from optimum_ishrink.cli.program import main
from optimum_ishrink.errors import SourceError
from optimum_ishrink.vocabulary import languages
from tests.helpers.hub_endpoints import Commit, Repo
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny import edit_json, save_tiny, tiny_config
from tests.helpers.trained_vocabulary import ROWS, TOKENS, save_trained, trained_tokenizer

SHAPE = ["--num-hidden-layers", "3", "--keep-first-layers", "0", "--keep-last-layers", "0", "--shape-only", "--json"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def few_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Count the most frequent words alone, and remember nothing of other tests."""
    whole = languages.words
    monkeypatch.setattr(languages, "words", lambda language: dict(islice(whole(language).items(), 2_000)))
    monkeypatch.setenv("ISHRINK_CACHE", str(tmp_path / "counts"))


def publish(hub: HubServer, name: str, folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    large = frozenset(path for path in files if path.endswith(".safetensors"))
    hub.repos[name] = Repo(commits=[Commit("1" * 40, "all", files, large)])


def fetched(hub: HubServer) -> set[str]:
    return {request.path.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.path}


@pytest.mark.parametrize(("model_type", "variant"), [("llama", 0), ("llama", 1), ("qwen3_moe", 0), ("gemma", 0)])
def test_of_a_hub_model_the_config_alone_is_fetched(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str, variant: int
) -> None:
    folder = save_tiny(tmp_path / "m", tiny_config(model_type, variant))
    publish(hub, "org/model", folder)
    assert main(["plan", "--model", str(folder), *SHAPE]) == 0
    local = json.loads(capsys.readouterr().out)
    assert main(["plan", "--model", "org/model", *SHAPE]) == 0
    assert json.loads(capsys.readouterr().out) == local
    assert fetched(hub) == {"config.json"}


def test_a_hub_model_that_cannot_be_cut_has_no_plan(
    hub: HubServer, llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    publish(hub, "org/pickled", folder)
    (folder / "pytorch_model.bin").rename(weights)
    (folder / "adapter_config.json").write_text("{}")
    publish(hub, "org/adapted", folder)
    (folder / "config.json").unlink()
    publish(hub, "org/bare", folder)
    for name, message in (
        ("org/pickled", "holds its weights only as pickle"),
        ("org/adapted", "holds adapter_config.json: from_pretrained loads that adapter on top of the weights"),
        ("org/bare", "org/bare holds no config.json; name a repository of a transformers model"),
        ("org/nothing", "neither a local folder nor a Hub repository that you can read"),
    ):
        assert main(["plan", "--model", name, *SHAPE]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and message in error[0]
    assert fetched(hub) <= {"config.json"}


def test_a_folder_whose_headers_do_not_fit_has_no_plan(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert main(["plan", "--model", str(folder), *SHAPE]) == 2
    assert "lacks 1 tensors that its config expects" in capsys.readouterr().err


def test_no_weights_are_read_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stored second head is compared with the embedding only where weights are read."""
    folder = save_tiny(tmp_path / "m", tiny_config("gemma"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", tie_word_embeddings=None)
    monkeypatch.setattr("optimum_ishrink.checkpoint.tensors.read_tensor", lambda *_: pytest.fail("weights were read"))
    assert main(["plan", "--model", str(folder), *SHAPE]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_parameters"] == sum(t.numel() for name, t in tensors.items() if name != "lm_head.weight")


def test_a_path_is_no_hub_id() -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_config("./nowhere")


TARGET = ["--target", "params=-20%", "--vocab-multiple", "8"]


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, int]:
    assert main(["plan", *words, "--json"]) == 0
    shape: dict[str, int] = json.loads(capsys.readouterr().out)["new_shape"]
    return shape


@pytest.mark.usefixtures("few_words")
def test_the_shape_of_a_target_is_that_of_the_whole_plan(
    worded_folder: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(worded_folder), "--calibration", str(text_file), *TARGET]
    shape = planned(capsys, *model, "--shape-only")
    assert shape["vocab_size"] < ROWS
    assert planned(capsys, *model, "--shape-only") == shape  # this one is remembered
    whole = ["--calibration-samples", "4", "--calibration-length", "16", "--importance", "l2-norm"]
    assert planned(capsys, *model, *whole, "--layer-importance", "l2-norm") == shape


@pytest.mark.usefixtures("few_words")
def test_a_size_that_shrink_refuses_has_no_plan(worded_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--vocab-size", "64"], "vocab_size=64 is fewer than the "),
        (["--vocab-size", "1000"], "vocab_size=1000 is not a multiple of 64"),
        (["--num-hidden-layers", "3", "--vocab-drop-reserved"], "vocab_drop_reserved says which tokens stay"),
        (["--vocab-size", "960", "--vocab-languages", "xx"], "unknown language with word frequencies 'xx'"),
        (["--vocab-size", "960", "--vocab-text", "no.txt"], "no.txt does not exist"),
    ):
        assert main(["plan", "--model", str(worded_folder), "--shape-only", *words]) == 2
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1 and message in error[0]


@pytest.mark.usefixtures("few_words")
def test_what_is_remembered_needs_neither_torch_nor_transformers(
    worded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(worded_folder), "--shape-only"]
    shape = planned(capsys, *model, *TARGET)
    script = (
        "import sys; from optimum_ishrink.cli.program import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'tokenizers', 'wordfreq'} & set(sys.modules); assert not heavy, heavy"
    )
    for words, vocab_size in (
        (TARGET, shape["vocab_size"]),
        (["--target", "params=-15%", "--prune", "intermediate_size,num_hidden_layers"], ROWS),
        (["--num-hidden-layers", "3"], ROWS),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, "plan", *model, *words, "--json"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ISHRINK_CACHE": str(tmp_path / "counts")},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["new_shape"]["vocab_size"] == vocab_size


@pytest.mark.usefixtures("few_words")
def test_of_a_hub_model_the_tokenizer_is_fetched_where_rows_may_go(
    hub: HubServer, worded_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, "org/model", worded_folder)
    shape = planned(capsys, "--model", "org/model", "--shape-only", *TARGET)
    assert shape == planned(capsys, "--model", str(worded_folder), "--shape-only", *TARGET)
    names = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names <= fetched(hub) <= {*names, "chat_template.jinja"}


@pytest.mark.usefixtures("few_words")
def test_a_folder_without_a_tokenizer_keeps_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_trained(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    assert main(["plan", "--model", str(folder), "--shape-only", "--target", "params=-15%", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["new_shape"]["vocab_size"] == ROWS
    assert "the vocabulary stays as it is: " in captured.err and "has no tokenizer.json" in captured.err
    assert main(["plan", "--model", str(folder), "--shape-only", "--vocab-size", "960"]) == 2
    assert "has no tokenizer.json, and only that file's vocabulary can be cut" in capsys.readouterr().err


def test_what_cannot_be_scored_is_refused_as_shrink_does(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    width = json.loads((llama_folder / "config.json").read_text())["intermediate_size"]
    moe = save_tiny(tmp_path / "moe", tiny_config("qwen3_moe"))
    cut = ["--num-hidden-layers", "3", "--intermediate-size", "8", "--keep-first-layers", "0"]
    wrong = ["--importance-group-size", str(width - 1)]
    for folder, options, message in (
        (llama_folder, wrong, f"importance_group_size={width - 1} does not divide the {width} neurons"),
        (moe, ["--importance", "obs"], "'obs' cannot see into experts"),
    ):
        words = ["plan", "--model", str(folder), *cut, *options]
        errors = []
        for more in ([], ["--shape-only"]):
            assert main([*words, *more]) == 2
            errors.append(capsys.readouterr().err.splitlines()[-1])
        assert errors[0] == errors[1]
        assert message in errors[1]
    depth = ["plan", "--model", str(llama_folder), *SHAPE, "--layer-importance", "block-influence", *wrong]
    assert main(depth) == 0  # no neurons are scored


def gguf_model(folder: Path, *, trained: bool = False) -> Path:
    """Write a GGUF file of a tiny Llama, as far as transformers reads it, with a tokenizer, or with a trained one."""
    import gguf
    import numpy as np

    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_block_count(4)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(8)
    rows = ROWS if trained else 40
    writer.add_vocab_size(rows)
    if trained:
        tokenizer = trained_tokenizer()
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        writer.add_tokenizer_model("gpt2")
        # transformers adds a token of this name to what it reads where there is none.
        others = ["<|endoftext|>", *(f"[PAD{i}]" for i in range(TOKENS + 1, ROWS))]
        writer.add_token_list([*tokenizer.convert_ids_to_tokens(range(TOKENS)), *others])
        writer.add_token_types([1] * TOKENS + [5] * (ROWS - TOKENS))
        writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_unk_token_id(tokenizer.pad_token_id)
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([f"t{i}" for i in range(40)])
    draw = np.random.default_rng(0)
    for name, shape in {"token_embd": (rows, 32), "output": (rows, 32), "blk.0.ffn_up": (64, 32)}.items():
        writer.add_tensor(f"{name}.weight", draw.standard_normal(shape).astype(np.float32))
    writer.add_tensor("weights_that_are_not_fetched", np.zeros(2**20, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return folder


def test_of_a_gguf_file_on_the_hub_the_header_alone_is_fetched(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gguf_model(tmp_path / "m")
    content = (folder / "tiny.gguf").read_bytes()
    hub.repos["org/gguf"] = Repo(commits=[Commit("1" * 40, "all", {"tiny.gguf": content}, frozenset({"tiny.gguf"}))])
    words = ["--gguf-file", "tiny.gguf", *SHAPE]
    assert main(["plan", "--model", str(folder), *words]) == 0
    local = json.loads(capsys.readouterr().out)
    assert local["shape"]["intermediate_size"] == 64
    assert main(["plan", "--model", "org/gguf", *words]) == 0
    assert json.loads(capsys.readouterr().out) == local
    assert fetched(hub) == {"tiny.gguf"}
    assert sum(request.method == "GET" for request in hub.requests if "/resolve/" in request.path) == 1
    assert main(["plan", "--model", "org/gguf", "--gguf-file", "other.gguf", *SHAPE]) == 2
    assert "org/gguf holds no 'other.gguf'; GGUF files there: tiny.gguf" in capsys.readouterr().err
    hub.repos["org/gguf"].head.files["tiny.gguf"] = b"GGML" + content[4:]
    assert main(["plan", "--model", "org/gguf", *words]) == 2
    assert "cannot read tiny.gguf of org/gguf: it is not a GGUF file" in capsys.readouterr().err
    assert main(["plan", "--model", str(folder), "--gguf-file", "other.gguf", *SHAPE]) == 2
    assert "holds no 'other.gguf'; GGUF files there: tiny.gguf" in capsys.readouterr().err


@pytest.mark.usefixtures("few_words")
def test_of_a_gguf_file_the_header_tells_how_many_rows_can_go(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gguf_model(tmp_path / "m", trained=True)
    publish(hub, "org/gguf", folder)
    words = ["--gguf-file", "tiny.gguf", "--shape-only", *TARGET]
    shape = planned(capsys, "--model", str(folder), *words)
    assert shape["vocab_size"] < ROWS
    assert planned(capsys, "--model", "org/gguf", *words) == shape
    assert fetched(hub) == {"tiny.gguf"}
    assert main(["plan", "--model", str(folder), *words[:3], "--vocab-size", "64"]) == 2
    assert "vocab_size=64 is fewer than the " in capsys.readouterr().err


@pytest.mark.usefixtures("few_words")
def test_rows_alone_need_no_scores(worded_folder: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(worded_folder), "--vocab-size", "960", "--importance-group-size", "7"]
    words += ["--calibration", str(text_file)]
    assert planned(capsys, *words, "--shape-only")["vocab_size"] == 960
    assert planned(capsys, *words)["vocab_size"] == 960
    assert main(["plan", *words, "--shape-only", "--intermediate-size", "8"]) == 2
    assert "importance_group_size=7 does not divide" in capsys.readouterr().err


def test_a_server_that_sends_no_parts_is_said_so(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = gguf_model(tmp_path / "m")
    publish(hub, "org/gguf", folder)
    client: Any = type(get_session())
    get = client.get

    def whole(self: Any, url: str, *, headers: dict[str, str], **how: Any) -> Any:
        return get(self, url, headers={name: value for name, value in headers.items() if name != "Range"}, **how)

    monkeypatch.setattr(client, "get", whole)
    assert main(["plan", "--model", "org/gguf", "--gguf-file", "tiny.gguf", *SHAPE]) == 2
    assert "cannot read tiny.gguf of org/gguf: the Hub does not send parts of it" in capsys.readouterr().err
