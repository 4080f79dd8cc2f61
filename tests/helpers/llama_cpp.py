"""Tiny models of any architecture in llama.cpp, and how far its predictions are from those of transformers."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from statistics import median
from typing import Any

import torch

from optimum_ishrink.edge.agreement import binned_divergence
from optimum_ishrink.edge.worker_process import run_worker
from optimum_ishrink.errors import SourceError
from tests.helpers.tiny import edit_json

OLD_KEYS: dict[str, dict[str, Any]] = {
    "cohere2": {"rotary_pct": 1.0},
    "dots1": {"scoring_func": "sigmoid"},
    "exaone_moe": {"scoring_func": "sigmoid"},
    "gpt2": {"n_ctx": 512},
    "gpt_neox": {"rotary_pct": 0.25},
    "nemotron_h": {"num_hidden_layers": 4},
    "phimoe": {"architectures": ["PhiMoEForCausalLM"], "original_max_position_embeddings": 512},
    "mpt": {"architectures": ["MPTForCausalLM"]},
}
"""What the converter reads in every published checkpoint and transformers 5 does not write."""

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(97, 123))]
"""A SentencePiece vocabulary: three special tokens, all bytes, a space and letters."""


def save_sentencepiece(folder: Path) -> None:
    """Write `tokenizer.model`, which llama.cpp's converter reads for most architectures."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    written = protocol.ModelProto()
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    for i, piece in enumerate(PIECES):
        entry = written.pieces.add()
        entry.piece, entry.score = piece, float(-i)
        entry.type = kinds.get(piece, 6 if piece.startswith("<0x") else 1)
    trainer = written.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = 2, True, len(PIECES)
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    written.normalizer_spec.name = "identity"
    written.normalizer_spec.add_dummy_prefix = written.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(written.SerializeToString())


def convert(folder: Path, output: Path) -> str | None:
    """Convert a folder in this process, whatever its tokenizer; return why it could not be, or None.

    Many architectures have tokenizers that the converter knows by a hash of their text, which a tiny one cannot have.
    So every architecture is given the same vocabulary here; the probabilities do not depend on it.
    """
    import gguf
    from conversion import ModelType, get_model_class
    from conversion.base import ModelBase, get_model_architecture

    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
            ModelBase.no_mtp = True  # as in edge/converter.py
            model = get_model_class(architecture)(folder, gguf.LlamaFileType.ALL_F32, output)
            model.set_vocab = model._set_vocab_sentencepiece
            model.write()
        except Exception as error:  # whatever the converter raises means that it does not convert
            return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return None


def llama_cpp_divergence(model: Any, folder: Path, length: int, predicted: int = 8) -> float | str:
    """Return the median KL divergence of llama.cpp from transformers at the end of a window, or why there is none.

    Args:
        model: The checkpoint, float32.
        folder: An empty folder.
        length: Tokens of the window.
        predicted: Predictions that are compared.
    """
    model.save_pretrained(folder)
    save_sentencepiece(folder)
    edit_json(folder / "config.json", **OLD_KEYS.get(model.config.model_type, {}))
    output = folder / "model.gguf"
    reason = convert(folder, output)
    if reason is not None:
        return f"converter: {reason}"
    size = model.config.vocab_size
    window = torch.randint(3, len(PIECES), (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p = model(window).logits[0, -predicted:].double().log_softmax(-1)
    request = {"task": "predict", "model": str(output), "threads": 1, "predicted": predicted, "lines": []}
    try:
        found = run_worker({**request, "candidates": size, "windows": window.tolist()}, limit=60)
    except SourceError as error:
        return f"llama.cpp: {error}"
    # The median: where two experts are nearly equal, rounding may choose another for a token.
    return median(binned_divergence(log_p[j], top)[0] for j, top in enumerate(found["top"][0]))
