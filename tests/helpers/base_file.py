"""A GGUF file of 16 bits as llama.cpp's converter would lay it out, written without it: it takes seconds to start."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch

from optimum_ishrink.checkpoint.source import Source
from optimum_ishrink.edge.tensor_names import gguf_names
from optimum_ishrink.search.template import Template, read_template
from optimum_ishrink.vocabulary.tokenizer_file import read_tokenizer_file


def write_base_file(source: Source, path: Path) -> Path:
    """Write a llama checkpoint as a GGUF file; its queries and keys are not reordered, so it predicts nonsense."""
    binding = source.binding
    writer = gguf.GGUFWriter(path, "llama")
    shape = binding.shape
    writer.add_name("tiny")
    writer.add_size_label("100K" if shape["num_hidden_layers"] == 3 else "made up of the name")
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    tokenizer = source.load_tokenizer()
    spelled = [tokenizer.convert_ids_to_tokens(row) or f"[PAD{row}]" for row in range(shape["vocab_size"])]
    writer.add_token_list(spelled)
    writer.add_token_types([1] * len(spelled))
    merges = read_tokenizer_file(source.folder).merges if (source.folder / "tokenizer.json").is_file() else []
    if len(merges):
        writer.add_token_merges([f"{spelled[left]} {spelled[right]}" for left, right in merges])
    writer.add_eos_token_id(2)
    model = source.load_model(torch.float32, torch.device("cpu"))
    parameters = dict(model.named_parameters())
    for name, translated in gguf_names(binding, "llama").items():
        if name not in parameters:
            continue
        data = parameters[name].detach().numpy()
        if data.ndim == 1:
            writer.add_tensor(translated, data)
        else:
            stored = gguf.quants.quantize(data, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(translated, stored, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def base_template(source: Source, path: Path) -> Template:
    """The file's template."""
    return read_template(write_base_file(source, path), source.binding)
