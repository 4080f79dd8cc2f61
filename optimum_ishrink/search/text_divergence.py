"""How far a smaller model is from its base: the KL divergence over text that neither calibrates nor reports.

Where the vocabulary was cut, both read the same text, each in its own tokens. After text that both have read, the
base's distribution is carried to the new tokens (`text.token_map`). Within a removed token, the further pieces count
with what the base's choice of just this token leaves of them: by the chain rule this is one text's estimate of the KL
divergence between the two models' distributions over text, and where nothing was removed it is the ordinary one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint.session import Session
from ..configuration import IShrinkConfig
from ..core.finite import check_logits
from ..evaluation.text_statistics import mean_estimate
from ..recovery.teacher_text import APART, TokenPair
from ..text.calibration import held_out_windows
from ..text.sources import TextSource, parse_sources


@dataclass(frozen=True)
class Divergence:
    """A measured divergence.

    Args:
        value: Nats for each of the base's tokens.
        stderr: Its standard error over the windows; None for one window.
        carried: The part of it at places that both models predict at, nats for each of these.
        windows: How many windows.
        tokens: The base's tokens in them.
    """

    value: float
    stderr: float | None
    carried: float
    windows: int
    tokens: int


def held_out_text(
    session: Session, config: IShrinkConfig, sources: Sequence[TextSource], *, samples: int, length: int
) -> torch.Tensor:
    """Return text to choose on, which calibration does not read.

    Args:
        session: The run over the base.
        config: The calibration.
        sources: Where it comes from.
        samples: Windows in all.
        length: Tokens in each.

    Returns:
        Token ids, int64, shape (samples, length).
    """
    return held_out_windows(
        sources,
        session.model,
        session.tokenizer,
        samples=samples,
        length=length,
        seed=config.seed,
        calibrated=parse_sources(config.calibration),
        calibration_samples=config.calibration_samples,
        calibration_length=config.calibration_length,
    )


class Reference:
    """A text with the base's predictions for it.

    Args:
        model: The base.
        windows: Token ids, int64, shape (windows, length).
        name: The base's name, for messages.
    """

    def __init__(self, model: Any, windows: torch.Tensor, name: str) -> None:
        self.windows = windows
        self.name = name
        self._model = model
        self._base = [self._predict(window) for window in windows]

    @torch.no_grad()
    def _predict(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the base's logits, shape (length, vocabulary)."""
        logits: torch.Tensor = self._model(input_ids=ids[None].to(self._model.device), use_cache=False).logits[0]
        check_logits(logits, self._model, ids[None].to(self._model.device), self.name, "the text to measure on")
        return logits.cpu()

    def measure(self, model: Any, name: str = "the candidate") -> Divergence:
        """Measure a model with the base's vocabulary.

        Args:
            model: The model.
            name: Its name, for messages.

        Raises:
            NotFiniteError: Its predictions are NaN or inf.
        """
        sums = []
        for window, base in zip(self.windows, self._base, strict=True):
            logits = _logits(model, window, name)
            sums.append(_divergence(base, logits).mean())
        return _estimate(torch.stack(sums), torch.stack(sums), self.windows.numel())

    def measure_trimmed(self, model: Any, pair: TokenPair, name: str = "the candidate") -> Divergence:
        """Measure a model with fewer tokens.

        Args:
            model: The model.
            pair: Its tokenizer and the base's.
            name: Its name, for messages.

        Raises:
            NotFiniteError: Its predictions are NaN or inf.
        """
        means, carried, tokens = [], [], 0
        for window, base in zip(self.windows, self._base, strict=True):
            ids, taught = pair.read_sampled(window[None])
            base_ids, places = taught.input_ids[0], taught.positions[0]
            if not torch.equal(base_ids, window[: len(base_ids)]):
                base = self._predict(base_ids)  # the text is split otherwise where the window began within a word
            total, compared, count = _window_sums(model, pair, ids[0], base_ids, places, base, name)
            means.append(total / count)
            carried.append(compared)
            tokens += count
        return _estimate(torch.stack(means), torch.stack(carried), tokens)


def _logits(model: Any, ids: torch.Tensor, name: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0]
    check_logits(found, model, ids[None].to(model.device), name, "the text to measure on")
    return found


def _divergence(base_logits: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the KL divergence at each position, float64 on the CPU."""
    log_p, log_q = base_logits.to(logits.device).float().log_softmax(-1), logits.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).double().cpu()


def _window_sums(
    model: Any,
    pair: TokenPair,
    ids: torch.Tensor,
    base_ids: torch.Tensor,
    places: torch.Tensor,
    base_logits: torch.Tensor,
    name: str,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return the summed divergence of a window, its mean at shared positions, and how many of the base's tokens."""
    log_q = _logits(model, ids, name).float().log_softmax(-1).cpu()
    at = (places != APART).nonzero()[:, 0]
    base_at = places[at]
    base_log_p = base_logits[: len(base_ids)].float().log_softmax(-1)
    log_p = pair.map.carry(base_logits[base_at])
    # Rows that nothing is carried to have no probability, and count nothing.
    terms = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q[at]), torch.zeros(()))
    compared = terms.sum(-1).double()
    within = torch.zeros((), dtype=torch.float64)
    for number in range(len(at) - 1):
        start, end = int(at[number]), int(at[number + 1])
        if end - start == 1:
            continue
        pieces = torch.arange(start + 1, end)
        loss = -log_q[pieces, ids[pieces + 1]].double().sum()
        first, token = int(ids[start + 1]), int(base_ids[int(base_at[number]) + 1])
        if int(base_at[number + 1]) - int(base_at[number]) == 1:
            # What the base leaves open once the first piece is known; the rest is in the carried distribution.
            loss -= (log_p[number, first] - base_log_p[base_at[number], token]).double()
        within += loss
    count = int(base_at[-1]) + 1
    return compared.sum() + within, compared.mean(), count


def _estimate(means: torch.Tensor, carried: torch.Tensor, tokens: int) -> Divergence:
    found = mean_estimate(means.double(), tokens)
    return Divergence(found.value, found.stderr, float(carried.mean()), len(means), tokens)
