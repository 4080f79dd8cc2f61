"""Tables and sentences about drafts, for the terminal and the card."""

from __future__ import annotations

from ..core.table import Row
from .draft import DraftRecord, DraftTiming, TriedDraft

DRAFT_HEADER: Row = (
    "draft",
    "parameters",
    "step cost",
    "agreement",
    "tokens a round",
    "expected",
    "accepted",
    "tokens a pass",
    "decode",
    "identical",
)


def draft_rows(record: DraftRecord) -> list[Row]:
    """Return a row for each draft: what was expected, and what was measured where it was timed.

    Args:
        record: The drafts.
    """
    return [_row(each) for each in record.tried]


def _row(draft: TriedDraft) -> Row:
    known, timing = draft.known, draft.timing
    threshold = f", p >= {known.confidence_threshold:g}" if known.confidence_threshold else ""
    row = (
        draft.name + (", recovered" if draft.recovered else ""),
        f"{draft.num_parameters / 1e6:.1f} M",
        f"{known.step_cost:.2f}",
        f"{known.agreement:.1%}",
        f"{known.num_assistant_tokens}{threshold}",
        f"x{known.speedup:.2f}",
    )
    if timing is None:
        return (*row, "", "", "", "")
    return (
        *row,
        f"{timing.acceptance:.1%}",
        f"{timing.tokens_per_pass:.2f}",
        f"x{timing.speed.ratio:.2f} ({timing.speed.verdict})",
        f"{timing.identical} of {timing.prompts}",
    )


def draft_sentences(record: DraftRecord) -> list[str]:
    """Return what was found, in plain sentences.

    Args:
        record: The drafts.
    """
    best = record.best_draft
    timing = best.timing
    assert timing is not None, "the best one was timed"
    low, high = timing.speed.interval
    found = [
        f"With {best.name} as its draft, {record.model} decodes at x{timing.speed.ratio:.2f} of its own speed "
        f"({low:.2f} to {high:.2f}; {timing.speed.verdict}): {timing.tokens_per_second:.1f} tokens per second beside "
        f"{timing.base_tokens_per_second:.1f}, over {record.rounds} rounds in turn.",
        f"The base accepted {timing.acceptance:.0%} of the drafted tokens; each of its passes gave "
        f"{timing.tokens_per_pass:.2f} tokens.",
        identity_sentence(timing),
    ]
    if timing.speed.ratio < 1 or timing.speed.verdict == "no difference":
        found.append(_why(best, timing))
    return found


def identity_sentence(timing: DraftTiming) -> str:
    """Return whether the output is the base's, in a sentence.

    Args:
        timing: What was measured.
    """
    if not timing.divergent:
        return (
            f"Under greedy decoding the output is the base's, token by token, after all {timing.prompts} prompts "
            f"({timing.tokens} tokens)."
        )
    gaps = [abs(each.gap) for each in timing.divergent if each.gap is not None]
    apart = f"at most {max(gaps):.3g} apart" if any(gaps) else "equal"
    ties = f"; there the base's two logits are {apart} in one pass over the text" if gaps else ""
    return (
        f"Under greedy decoding the output is the base's after {timing.identical} of {timing.prompts} prompts; the "
        f"others differ from one token on{ties}. A pass over several tokens rounds otherwise than single steps do, "
        "and decides near ties otherwise."
    )


def _why(best: TriedDraft, timing: DraftTiming) -> str:
    known = best.known
    length = timing.drafted / timing.passes if timing.passes else 0.0
    return (
        f"No draft of those timed makes this model faster here. A step of this one costs {known.step_cost:.2f} of the "
        f"base's, and a round of {length:.1f} drafted tokens yields {timing.tokens_per_pass:.2f}: without any other "
        f"cost the round takes {length * known.step_cost + 1:.2f} steps of the base. A larger base, whose head is a "
        "smaller share of it, a draft that is trained longer, or one that computes in fewer bits than the base shifts "
        "that."
    )
