"""Tokenizers that begin every text with a token, or two, of their own."""

from __future__ import annotations

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.helpers.tiny import tiny_tokenizer


def beginning_tokenizer(*tokens: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, which begins every text with these tokens, `<s>` if none are named.

    Args:
        tokens: Special tokens of the tiny tokenizer.
        template: A chat template.
    """
    own = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=128,
    )
    names = tokens or ("<s>",)
    start = " ".join(names)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A",
        pair=f"{start} $A $B",
        special_tokens=[(name, own.convert_tokens_to_ids(name)) for name in dict.fromkeys(names)],
    )
    own.chat_template = template
    return own
