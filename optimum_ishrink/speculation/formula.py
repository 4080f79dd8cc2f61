"""What a draft can gain, by arithmetic: Leviathan et al. 2023, arXiv:2211.17192, and a replay of rounds on real text.

A round: the draft proposes tokens one by one; one pass of the base computes its own choice at each of them. Proposals
are accepted up to the first that differs, and the base's own token follows. So a round yields one token more than were
accepted, and the output is the base's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12)
"""Tokens drafted in a round, at most, that are considered."""

THRESHOLDS = (0.0, 0.4, 0.6, 0.8)
"""Confidences below which a draft stops a round that are considered; 0 for never. 0.4 is the default of
transformers."""


def expected_tokens(acceptance: float, length: int) -> float:
    """Return the tokens that a pass of the base yields: `(1 - a^(k+1)) / (1 - a)`, equation 1 of arXiv:2211.17192.

    Args:
        acceptance: Probability that a drafted token is accepted, taken as independent of the others.
        length: Tokens drafted in each round.
    """
    if acceptance >= 1:
        return float(length + 1)
    return float((1 - acceptance ** (length + 1)) / (1 - acceptance))


def expected_speedup(acceptance: float, length: int, cost: float, verification: float = 1.0) -> float:
    """Return the speed relative to the base alone: theorem 3.8 of arXiv:2211.17192, where `verification` is 1.

    Args:
        acceptance: Probability that a drafted token is accepted.
        length: Tokens drafted in each round.
        cost: Time of a step of the draft, in steps of the base.
        verification: Time of a pass of the base over `length + 1` tokens, in its steps. 1 where weights are read far
            slower than computed with.
    """
    return expected_tokens(acceptance, length) / (length * cost + verification)


@dataclass(frozen=True)
class Policy:
    """How long a draft proposes.

    Args:
        length: Tokens in a round, at most.
        threshold: The round ends after a token that the draft gives a lower probability; 0 for never.
    """

    length: int
    threshold: float = 0.0


POLICIES = tuple(Policy(length, threshold) for length, threshold in product(LENGTHS, THRESHOLDS))


@dataclass(frozen=True)
class StepCosts:
    """What is computed in a round, in steps of the base.

    Args:
        draft: Time of a step of the draft.
        passes: Time of a pass of the base, by the tokens in it; other numbers are interpolated.
    """

    draft: float
    passes: Mapping[int, float]

    def verification(self, tokens: float) -> float:
        """Return the time of a pass of the base over some tokens, by linear interpolation.

        Args:
            tokens: Tokens in the pass, a mean over rounds.
        """
        known = sorted(self.passes.items())
        if tokens <= known[0][0] or len(known) == 1:
            return known[0][1]
        upper = next((place for place, (count, _) in enumerate(known) if count >= tokens), len(known) - 1)
        (x, low), (y, high) = known[upper - 1], known[upper]
        return low + (high - low) * (tokens - x) / (y - x)


@dataclass(frozen=True)
class Rounds:
    """What happened in the rounds of some texts.

    Args:
        tokens: Tokens of the output.
        passes: Passes of the base, one for each round.
        drafted: Tokens that the draft proposed.
        accepted: Those that the base chose, too.
    """

    tokens: int
    passes: int
    drafted: int
    accepted: int

    def __add__(self, other: Rounds) -> Rounds:
        """Return the rounds of both."""
        return Rounds(
            self.tokens + other.tokens,
            self.passes + other.passes,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were accepted; 0 where none was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass of the base yields."""
        return self.tokens / self.passes

    def speedup(self, costs: StepCosts) -> float:
        """Return the speed relative to the base alone that the costs give.

        Args:
            costs: What is computed in a round.
        """
        length = self.drafted / self.passes
        return self.tokens_per_pass / (length * costs.draft + costs.verification(length + 1))


NO_ROUNDS = Rounds(0, 0, 0, 0)


def replay(matches: Sequence[bool], confidences: Sequence[float], policy: Policy) -> Rounds:
    """Return what rounds a policy gives on a text that the base wrote by greedy decoding.

    As far as the base accepts, the draft has read what the base wrote, so its choices there are known from one pass
    over the text. After a token that is rejected it reads another text: there it is taken to go on to the end of the
    round, unless it was unsure of that token. No token after that one is ever accepted.

    Args:
        matches: At each token of the text, whether the draft chooses it.
        confidences: The probability that the draft gives its own choice there.
        policy: How long it proposes.
    """
    at = passes = drafted = accepted = 0
    while at < len(matches):
        room = len(matches) - at - 1  # the base adds the last token itself
        taken = 0
        for step in range(min(policy.length, room)):
            sure = confidences[at + step] >= policy.threshold
            if not matches[at + step]:
                drafted += min(policy.length, room) - step if sure else 1
                break
            drafted, taken = drafted + 1, taken + 1
            if not sure:
                break
        accepted, passes, at = accepted + taken, passes + 1, at + taken + 1
    return Rounds(len(matches), passes, drafted, accepted)


def best_policy(
    texts: Sequence[tuple[Sequence[bool], Sequence[float]]], costs: StepCosts, policies: Iterable[Policy] = POLICIES
) -> tuple[Policy, Rounds]:
    """Return the policy that is expected to be fastest, and its rounds.

    Args:
        texts: For each text: matches and confidences, as of `replay`.
        costs: What is computed in a round.
        policies: What is considered.
    """

    def rounds(policy: Policy) -> Rounds:
        return sum((replay(matches, sure, policy) for matches, sure in texts), NO_ROUNDS)

    found = [(policy, rounds(policy)) for policy in policies]
    return max(found, key=lambda each: each[1].speedup(costs))
