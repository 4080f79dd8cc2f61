"""Which parameters are trained, as people write it: an adapter, all, or a sum of parts."""

from __future__ import annotations

from ..errors import RequestError, unknown_name

LORA, FULL = "lora", "full"
PARTS = ("embeddings", "head", "norms", "last:N")


def parse_trained(text: str) -> tuple[str, ...]:
    """Parse what is trained.

    Args:
        text: `lora`, `full`, or parts joined by `+`: `embeddings`, `head`, `norms`, `last:N`.

    Raises:
        RequestError: A part is unknown, or `lora` or `full` is joined with another.
    """
    parts = tuple(part.strip() for part in str(text).split("+"))
    for part in parts:
        kind, colon, number = part.partition(":")
        if part in (LORA, FULL) and len(parts) > 1:
            raise RequestError(f"{part!r} is trained alone, not in {text!r}; join only {', '.join(PARTS)}")
        if part in (LORA, FULL, "embeddings", "head", "norms"):
            continue
        if kind != "last":
            raise RequestError(unknown_name("set of parameters", part, (LORA, FULL, *PARTS)))
        if not colon or not number.isdigit() or int(number) < 1:
            raise RequestError(f"the last layers are named with their number, such as last:2, not {part!r}")
    return parts
