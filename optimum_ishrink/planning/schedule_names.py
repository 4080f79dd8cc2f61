"""Schedules as people write them: the stages, and how a schedule is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from ..architectures.description import EXPERTS, GROUPS, LAYERS, NEURONS, ROWS, TOP_K
from ..errors import RequestError, unknown_name

HEADS = "num_attention_heads"

CUTS: Mapping[str, tuple[str, ...]] = {
    "width": (NEURONS,),
    "depth": (LAYERS,),
    "heads": (GROUPS, HEADS),
    "experts": (EXPERTS, TOP_K),
    "vocabulary": (ROWS,),
}
"""Stages that cut, with the config keys that each changes."""

CUT, RECOVER = "cut", "recover"
"""The stage that cuts whatever no other stage names, and the one that trains."""

STAGES = (*CUTS, CUT, RECOVER)

_REPEATED = re.compile(r"(\d{1,3})x\(([^()]*)\)")


def parse_schedule(text: str) -> tuple[str, ...]:
    """Return the stages of a schedule, repetitions written out.

    Args:
        text: Names of stages, comma-separated; `3x(cut,recover)` is the part in brackets three times over.

    Raises:
        RequestError: A name is unknown, brackets do not close, the first stage recovers, or two in a row do.
    """
    plain = _REPEATED.sub(lambda found: ",".join([found[2]] * int(found[1])), text)
    if set("()") & set(plain):
        raise RequestError(f"schedule={text!r} has brackets that do not close or are nested; write 3x(cut,recover)")
    names = tuple(part.strip() for part in plain.split(","))
    for name in names:
        if name not in STAGES:
            raise RequestError(f"schedule={text!r}: {unknown_name('stage', name, STAGES)}")
    if names[0] == RECOVER:
        raise RequestError(f"schedule={text!r} recovers first, and nothing is cut yet; begin with a cut such as width")
    if any(pair == (RECOVER, RECOVER) for pair in pairwise(names)):
        raise RequestError(f"schedule={text!r} recovers twice in a row; once trains on both shares of the text")
    return names
