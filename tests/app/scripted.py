"""Tiny models that always answer the same words, as GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
CONTEXT = 512
_SIZE = 64
_LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def scripted_gguf(
    path: Path,
    pieces: Sequence[str],
    *,
    ending: bool = True,
    context: int = CONTEXT,
    template: str | None = TEMPLATE,
    architecture: str = "llama",
) -> Path:
    """A model that answers with these pieces, a token each, and then ends, or begins again without `ending`.

    Its layers change nothing, so that the last token alone decides the next one: every token of the script has an
    embedding of its own, which the output head turns into the next token. After all others the script begins.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_LETTERS, *pieces]
    assert len({*pieces}) == len(pieces) < _SIZE, "each piece must be there once"
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(_LETTERS)
    kinds += [gguf.TokenType.USER_DEFINED] * len(pieces)

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(context)
    writer.add_embedding_length(_SIZE)
    writer.add_block_count(1)
    writer.add_feed_forward_length(_SIZE)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(_SIZE // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(place) for place in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    tensors = _tensors(tokens, pieces, ending)
    if architecture == "qwen3":
        tensors |= dict.fromkeys(("blk.0.attn_q_norm", "blk.0.attn_k_norm"), np.ones(_SIZE // 2))
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(tokens: Sequence[str], pieces: Sequence[str], ending: bool) -> dict[str, np.ndarray]:
    embedding = np.zeros((len(tokens), _SIZE))
    embedding[:, 0] = 1
    head = np.zeros((len(tokens), _SIZE))
    first = len(tokens) - len(pieces)
    script = [*range(first, len(tokens)), *([2] if ending else [])]
    for place, token in enumerate(script):
        head[token, place] = 8
        if place:
            embedding[script[place - 1]] = np.eye(_SIZE)[place]
    half = np.zeros((_SIZE // 2, _SIZE))
    whole = np.zeros((_SIZE, _SIZE))
    ones = np.ones(_SIZE)
    layer = {"attn_norm": ones, "ffn_norm": ones, "attn_k": half, "attn_v": half}
    layer |= dict.fromkeys(("attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down"), whole)
    blocks = {f"blk.0.{name}": tensor for name, tensor in layer.items()}
    return {"token_embd": embedding, **blocks, "output_norm": ones, "output": head}
