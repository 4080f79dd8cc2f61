"""A tokenizer trained on Python's reference topics, which has tokens that can be removed, and tiny models for it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.tiny import tiny_config, tiny_model

TRAINED, ROWS = 1_498, 1_536
END = "<|im_end|>"
TOKENS = TRAINED + 2
"""Tokens, and rows of the embedding: the last ones have no token."""

_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def trained_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,500 tokens. Its end token comes after all that text can reach."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    tokenizer.add_special_tokens(["<|im_start|>", END])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token=END,
        pad_token="<pad>",
        chat_template=_TEMPLATE,
        model_max_length=512,
    )


def save_trained(folder: Path, model_type: str = "llama", *, ends: bool = False, **changes: Any) -> Path:
    """Save a tiny model whose rows are those of the trained tokenizer, and return the folder.

    Args:
        folder: Where to save it.
        model_type: Its architecture.
        ends: Whether the model writes the end token after any text.
        **changes: Other values of its config.
    """
    tokenizer = trained_tokenizer()
    end = tokenizer.convert_tokens_to_ids(END)
    model = tiny_model(tiny_config(model_type, **{"vocab_size": ROWS, "eos_token_id": end, **changes}))
    if ends:
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            model.model.norm.weight.fill_(1)
            model.model.embed_tokens.weight[:, 0] = 5
            model.lm_head.weight[end] = 0
            model.lm_head.weight[end, 0] = 100
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
