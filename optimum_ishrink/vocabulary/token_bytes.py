"""The bytes of text that each token of a vocabulary stands for."""

from __future__ import annotations

from functools import cache

from ..text.token_map import is_byte
from .tokenizer_file import BYTE_LEVEL, SPACE_MARK, TokenizerFile


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the characters that stand for bytes in byte-level vocabularies, each with its byte.

    Printable characters of Latin-1 stand for themselves; the other bytes follow from 256 on, as in GPT-2's.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def token_bytes(tokenizer: TokenizerFile) -> list[bytes]:
    """Return the bytes that each token adds to a decoded text, by id.

    The space that sentencepiece's vocabularies mark is a space, and a token that stands for a byte is that byte. An
    added token has its content, and an id without a token has none.

    Args:
        tokenizer: The tokenizer.
    """
    alphabet = byte_alphabet()
    found: list[bytes] = []
    for token in tokenizer.tokens:
        if token is None:
            found.append(b"")
        elif token in tokenizer.added:
            found.append(token.encode("utf-8", "surrogatepass"))
        elif tokenizer.kind == BYTE_LEVEL:
            found.append(bytes([alphabet[c] for c in token]) if alphabet.keys() >= {*token} else token.encode("utf-8"))
        elif is_byte(token):
            found.append(bytes([int(token[3:5], 16)]))
        else:
            found.append(token.replace(SPACE_MARK, " ").encode("utf-8", "surrogatepass"))
    return found


def token_texts(tokenizer: TokenizerFile) -> list[str | None]:
    """Return the text that each token stands for, by id; None where it is no text on its own, or there is no token.

    Args:
        tokenizer: The tokenizer.
    """
    found: list[str | None] = []
    for content in token_bytes(tokenizer):
        try:
            found.append(content.decode("utf-8") or None)
        except UnicodeDecodeError:
            found.append(None)
    return found
