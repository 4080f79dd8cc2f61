"""The proof of a smaller vocabulary: what all retained tokens compute does not change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from optimum_ishrink.architectures.binding import BoundTensor
from optimum_ishrink.architectures.description import HEADS
from optimum_ishrink.architectures.expressions import parse_axes
from optimum_ishrink.architectures.model_class import bind_config, model_class
from optimum_ishrink.checkpoint.source import open_source
from optimum_ishrink.checkpoint.tensors import read_index
from optimum_ishrink.errors import SourceError, VerificationError
from optimum_ishrink.surgery import embeddings
from optimum_ishrink.surgery.embeddings import outgoing_embeddings, write_embeddings
from optimum_ishrink.surgery.tied_head import compare_head
from tests.helpers.cutting import SHAPES, assert_exact, cut_to, exact_logits, masked_checkpoint, random_plan
from tests.helpers.cutting import load as load_model
from tests.helpers.embeddings import ROWS, copy_with, save_with_head, write_rows
from tests.helpers.tiny import LAYOUT_CASES, VOCAB, edit_json, save_tiny, supported_shape, tiny_config

POSITIONS = torch.randint(len(ROWS), (2, 9), generator=torch.Generator().manual_seed(1))
OLD_IDS, NEW_IDS = torch.tensor(ROWS)[POSITIONS], POSITIONS


def load(folder: Path) -> Any:
    """A loaded model, its weights as they are aligned in fresh memory.

    The files are mapped, and products of the same numbers at other offsets can differ in their last bits.
    """
    model = load_model(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@torch.no_grad()
def _run(model: Any, ids: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    output = model(ids, output_hidden_states=True)
    return output.hidden_states, output.logits


def assert_same_of_rows(whole: Any, trimmed: Any, rows: tuple[int, ...] = ROWS) -> None:
    """The hidden states are equal to the bit, the logits to that of a matrix product of another width."""
    states, logits = _run(whole, OLD_IDS)
    new_states, new_logits = _run(trimmed, torch.searchsorted(torch.tensor(rows), OLD_IDS))
    assert len(states) == len(new_states)
    assert all(torch.equal(before, after) for before, after in zip(states, new_states, strict=True))
    assert new_logits.shape[-1] == len(rows)
    expected = logits[..., list(rows)]
    torch.testing.assert_close(new_logits, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))
    assert logits.argmax(-1).ne(0).any()  # something is computed


def _ties_head(config: Any) -> bool:
    """Whether the class of a config ties its head where the config says so: some never do."""
    return bool(model_class(config)._tied_weights_keys)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_retained_tokens_compute_the_same(model_type: str, variant: int, tied: bool, tmp_path: Path) -> None:
    config = tiny_config(model_type, variant, tie_word_embeddings=tied)
    folder = save_tiny(tmp_path / "base", config)
    edit_json(folder / "config.json", tie_word_embeddings=tied)
    heads = {*HEADS} & read_index(folder).keys()
    assert len(heads) == (0 if tied and _ties_head(config) else 1)
    if tied and heads:
        return
    trimmed = write_rows(folder, tmp_path / "trimmed", ROWS)
    assert_same_of_rows(load(folder), load(trimmed))
    new = json.loads((trimmed / "config.json").read_text())
    assert new["vocab_size"] == len(ROWS)
    stored = sum(torch.Size(info.shape).numel() for info in read_index(trimmed).values())
    binding = open_source(folder).binding
    assert stored == binding.num_parameters({"vocab_size": len(ROWS)}) < binding.num_parameters()
    kept = {name: info for name, info in read_index(folder).items() if info.shape[:1] != (VOCAB,)}
    before, after = load_file(folder / "model.safetensors"), load_file(trimmed / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in kept)


@pytest.mark.parametrize(
    ("model_type", "variant", "counted"),
    [
        ("llama", 0, {"model.embed_tokens.weight", "lm_head.weight"}),
        ("llama", 1, {"model.embed_tokens.weight"}),  # tied
        ("phi", 0, {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"}),
        ("gpt_neox", 0, {"gpt_neox.embed_in.weight", "embed_out.weight"}),
        ("gpt2", 0, {"transformer.wte.weight"}),
    ],
)
def test_the_rows_that_stay_are_those_of_the_base(
    model_type: str, variant: int, counted: set[str], tmp_path: Path
) -> None:
    base = save_tiny(tmp_path / "base", tiny_config(model_type, variant))
    source, progress = open_source(base), list[int]()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text(json.dumps({**source.raw_config, "vocab_size": len(ROWS)}))
    write_embeddings(source.tensors, source.binding, tmp_path / "cut", ROWS, progress=progress.append)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "cut"))
    assert after.keys() == before.keys()
    assert {name for name in after if after[name].shape != before[name].shape} == counted
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name][list(ROWS)] if name in counted else before[name])
    assert sum(progress) == sum(tensor.nbytes for tensor in after.values())


def test_nothing_is_read_before_it_is_written(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "read_tensor", lambda *_: pytest.fail("weights were read"))
    source = open_source(llama_folder)
    shapes = {tensor.name: tensor.shape for tensor in outgoing_embeddings(source.tensors, source.binding, ROWS)}
    assert shapes["lm_head.weight"] == (len(ROWS), 32)


@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_masked_equals_sliced_with_fewer_rows(model_type: str, variant: int, tmp_path: Path) -> None:
    config = tiny_config(model_type, variant)
    folder = save_tiny(tmp_path / "base", config)
    trimmed = write_rows(folder, tmp_path / "trimmed", ROWS)
    raw = json.loads((trimmed / "config.json").read_text())
    shape = supported_shape(config, SHAPES["all"])
    plan, _, binding = random_plan(raw, shape, seed=3)
    found = exact_logits(cut_to(trimmed, tmp_path / "cut", plan), NEW_IDS)
    stored = sum(torch.Size(info.shape).numel() for info in read_index(tmp_path / "cut").values())
    assert stored == plan.new_num_parameters
    # The whole vocabulary's model with the same units at zero.
    whole = bind_config(json.loads((folder / "config.json").read_text()))[1]
    assert {**whole.shape, "vocab_size": 0} == {**binding.shape, "vocab_size": 0}
    expected = exact_logits(masked_checkpoint(folder, tmp_path / "masked", whole, plan), OLD_IDS, plan)
    if plan.inexact:
        assert found.isfinite().all()
    else:
        assert_exact(found, expected[..., list(ROWS)])


@pytest.mark.parametrize("pad", [0, VOCAB - 1, VOCAB - 2, None])
def test_a_padding_token_keeps_its_row(pad: int | None, tmp_path: Path) -> None:
    rows = (*ROWS[:-1], 298, 299)
    config = tiny_config("llama", pad_token_id=pad, eos_token_id=[2, 256])
    folder = save_tiny(tmp_path / "base", config)
    trimmed = write_rows(folder, tmp_path / "trimmed", rows)
    model = load(trimmed)
    assert model.config.eos_token_id == [2, rows.index(256)]
    assert model.config.bos_token_id == 1
    assert model.config.pad_token_id == (None if pad is None else rows.index(pad))
    assert model.model.embed_tokens.padding_idx == model.config.pad_token_id
    assert_same_of_rows(load(folder), model, rows)
    # A batch with padding on the left: the rows of tokens compute the same, whatever stands for nothing.
    if pad is not None:
        ids = OLD_IDS.clone()
        ids[0, :4] = pad
        mask = torch.ones_like(ids)
        mask[0, :4] = 0
        with torch.no_grad():
            expected = load(folder)(ids, attention_mask=mask).logits[..., list(rows)]
            found = model(torch.searchsorted(torch.tensor(rows), ids), attention_mask=mask).logits
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "name", "shape"),
    [
        ("llama", "model.mtp.0.shared_head.head.weight", (VOCAB, 32)),
        ("qwen3", "mtp.embed_tokens.weight", (VOCAB, 32)),
        ("gemma3_text", "model.embed_tokens_per_layer.weight", (VOCAB, 16)),
        ("llama", "model.layers.0.value_embed.weight", (VOCAB, 32)),
        ("llama", "lm_head.bias", (VOCAB,)),
        ("qwen2", "medusa_head.0.1.weight", (VOCAB, 32)),
    ],
)
def test_other_tensors_that_count_the_vocabulary_are_refused(
    model_type: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base", tiny_config(model_type))
    odd = copy_with(folder, tmp_path / "odd", **{name: torch.zeros(shape)})
    with pytest.raises(SourceError, match="holds 1 tensors that its config does not expect"):
        write_rows(odd, tmp_path / "trimmed", ROWS)
    assert not (tmp_path / "trimmed" / "model.safetensors").exists()


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 96), min_size=1), st.integers(1, 40), st.sampled_from([(97,), (97, 3), (97, 5, 2)]))
def test_pieces_make_up_the_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: set[int], most: int, shape: tuple[int, ...]
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    tensor = torch.randn(shape).bfloat16()
    save_file({"other": torch.ones(3), "w": tensor}, folder / "model.safetensors")
    info = read_index(folder)["w"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "_PIECE", most * tensor[0].nbytes)
        pieces = [piece.clone() for piece in embeddings._pieces(info, sorted(rows), embeddings.Scratch())]
    assert torch.equal(torch.cat(pieces), tensor[sorted(rows)])
    assert all(1 <= len(piece) <= most for piece in pieces)


def test_rows_are_read_in_pieces(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "_PIECE", 7 * 32 * 4)
    read = []
    original = embeddings.read_tensor

    def watched(info: Any, *rest: Any) -> torch.Tensor:
        read.append(info.nbytes)
        return original(info, *rest)

    monkeypatch.setattr(embeddings, "read_tensor", watched)
    trimmed = write_rows(llama_folder, tmp_path / "trimmed", ROWS)
    assert max(read) <= 7 * 32 * 4
    assert_same_of_rows(load(llama_folder), load(trimmed))


def test_an_embedding_with_rows_along_another_axis_is_cut(tmp_path: Path) -> None:
    source = open_source(save_tiny(tmp_path / "base", tiny_config("llama", tie_word_embeddings=False)))
    bound = source.binding.tensors["lm_head.weight"]
    turned = replace(bound, axes=parse_axes("hidden, vocab"))
    binding = replace(source.binding, tensors={"lm_head.weight": turned})
    weight = torch.randn(32, VOCAB)
    save_file({"lm_head.weight": weight}, tmp_path / "model.safetensors")
    (outgoing,) = outgoing_embeddings(read_index(tmp_path), binding, ROWS)
    assert outgoing.shape == (32, len(ROWS)) and outgoing.make is not None
    assert torch.equal(outgoing.make(), weight[:, list(ROWS)])
    assert isinstance(bound, BoundTensor)


def test_a_disk_that_changes_what_is_written_is_found(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = embeddings.write_weights

    def damaging(outgoing: Any, folder: Path, **how: Any) -> None:
        write(outgoing, folder, **how)
        info = read_index(folder)["model.embed_tokens.weight"]
        with info.file.open("r+b") as file:
            file.seek(info.end - 2)
            file.write(b"\x55\x55")

    monkeypatch.setattr(embeddings, "write_weights", damaging)
    with pytest.raises(VerificationError, match=r"model\.embed_tokens\.weight does not read back as it was written"):
        write_rows(llama_folder, tmp_path / "trimmed", ROWS)


@pytest.mark.parametrize("rows", [pytest.param(None, marks=pytest.mark.slow), ROWS])
@pytest.mark.parametrize(("model_type", "variant"), LAYOUT_CASES)
def test_a_tied_head_computes_the_same(
    model_type: str, variant: int, rows: tuple[int, ...] | None, tmp_path: Path
) -> None:
    config = tiny_config(model_type, variant)
    if not _ties_head(config):
        return  # refused: see tests/pipeline/test_tying.py
    folder = save_with_head(tmp_path / "base", config)
    source = open_source(folder)
    head = compare_head(source.tensors, source.binding)
    assert head is not None and head.same and head.retained == head.embedding
    tied = write_rows(folder, tmp_path / "tied", rows, head)
    before, after = read_index(folder), read_index(tied)
    assert before.keys() - after.keys() == {head.head}
    if rows is not None:
        assert_same_of_rows(load(folder), load(tied))
        return
    model = load(tied)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    states, logits = _run(load(folder), OLD_IDS)
    new_states, new_logits = _run(model, OLD_IDS)
    assert all(torch.equal(*pair) for pair in zip(states, new_states, strict=True))
    assert torch.equal(logits, new_logits)
    assert open_source(folder).binding.num_parameters() - head.num_parameters == sum(
        torch.Size(info.shape).numel() for info in after.values()
    )


@pytest.mark.parametrize("rows", [None, ROWS])
def test_the_finer_of_two_quantisations_is_retained(rows: tuple[int, ...] | None, tmp_path: Path) -> None:
    folder = save_with_head(tmp_path / "base", tiny_config("llama"), error=0.3, swap=True)
    source = open_source(folder)
    head = compare_head(source.tensors, source.binding)
    assert head is not None and head.retained == head.head == "lm_head.weight"
    tied = load_file(write_rows(folder, tmp_path / "tied", rows, head) / "model.safetensors")
    whole = load_file(folder / "model.safetensors")["lm_head.weight"]
    assert "lm_head.weight" not in tied
    assert torch.equal(tied["model.embed_tokens.weight"], whole if rows is None else whole[list(rows)])
