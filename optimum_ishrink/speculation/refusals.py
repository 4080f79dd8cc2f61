"""What cannot draft or be drafted for, and why: checked before long work where a config tells, else on the base."""

from __future__ import annotations

from typing import Any

import torch

from ..architectures.composite import check_alone
from ..architectures.model_class import model_class
from ..checkpoint.source import Source
from ..configuration import IShrinkConfig
from ..core.key_value_cache import cache_name, has_state, keeps_cache
from ..errors import RequestError

_VOCABULARY = ("vocab_size", "tie_embeddings")
"""Options that change what a token's number stands for, or the head."""

_OTHER = "make the draft of this model itself (leave out --draft-model)"

UNIVERSAL = (
    "plain assisted generation compares token numbers; transformers can draft across tokenizers with universal "
    "assisted decoding (generate(tokenizer=..., assistant_tokenizer=...)), which this does not measure"
)


def check_base_class(source: Source) -> None:
    """Check that a model is a text decoder whose class transformers drafts for: one with a cache of keys and values.

    Args:
        source: The base.

    Raises:
        RequestError: It is not.
    """
    check_alone(source.raw_config, source.display_name, "a draft", "name a text decoder")
    found = model_class(source.config)
    if getattr(found, "_is_stateful", False):
        raise RequestError(_no_way_back(source))
    if not keeps_cache(found):
        raise RequestError(
            f"{_no_drafts_for(source)}: its class keeps no key-value cache, which assisted generation needs; name a "
            "base whose class keeps one"
        )


def check_draft_class(source: Source) -> None:
    """Check that a draft reads one token in a step, and not all that came before.

    Args:
        source: The draft.

    Raises:
        RequestError: Its class keeps no cache.
    """
    if not keeps_cache(model_class(source.config)):
        raise RequestError(
            f"{source.display_name} cannot draft: its class ({source.raw_config.get('model_type')}) keeps no "
            f"key-value cache, so that every step would read the whole text again; {_OTHER}"
        )


def check_base(source: Source, model: Any) -> None:
    """Check that a base can take back tokens that it has read, as a rejected draft asks.

    Args:
        source: The base; its class keeps a cache.
        model: Its loaded model.

    Raises:
        RequestError: It returns no cache, or one that cannot go back.
    """
    name = cache_name(model)
    with torch.inference_mode():
        output = model(input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device), use_cache=True)
    cache = output.get(name)
    if cache is None or not getattr(cache, "is_croppable", True) or has_state(cache):
        raise RequestError(_no_way_back(source))


def _no_way_back(source: Source) -> str:
    return (
        f"{_no_drafts_for(source)}: its state sums up what was read and cannot take back rejected tokens; name a base "
        "that has a key-value cache alone"
    )


def _no_drafts_for(source: Source) -> str:
    return f"transformers does not draft for {source.display_name} ({source.raw_config.get('model_type')})"


def check_vocabulary(config: IShrinkConfig) -> None:
    """Check that a draft that is made has the base's vocabulary.

    Args:
        config: The request.

    Raises:
        RequestError: The vocabulary would change.
    """
    given = [name for name in _VOCABULARY if getattr(config, name)]
    if given:
        raise RequestError(f"a draft has its base's vocabulary, and {given[0]} changes it; leave it out: {UNIVERSAL}")


def check_same_tokens(base: Source, draft: Source) -> None:
    """Check that a draft has the base's tokens under the base's numbers.

    Args:
        base: The base.
        draft: The draft.

    Raises:
        RequestError: It has not.
    """
    ours, theirs = (source.load_tokenizer().get_vocab() for source in (base, draft))
    rows = [source.config.vocab_size for source in (base, draft)]
    if rows[0] != rows[1]:
        reason = f"has {rows[1]} tokens, and {base.display_name} {rows[0]}"
    elif ours != theirs:
        differs = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        reason = f"has another tokenizer than {base.display_name}: they differ in the token {differs!r}"
    else:
        return
    raise RequestError(f"{draft.display_name} cannot draft: it {reason}; {_OTHER}: {UNIVERSAL}")
