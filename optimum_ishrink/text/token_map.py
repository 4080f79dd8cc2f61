"""How the tokens of a model correspond to those of a model with fewer tokens, such as one with a trimmed vocabulary.

Text that has a removed token in it is split differently by the two. Their predictions can be compared where both have
read the same text: there the larger model's distribution is carried to the smaller vocabulary, each removed token's
probability to the first of the tokens that it is split into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

NOWHERE = -1
"""Stands for a row of the larger vocabulary that no text gives, and that the smaller one does not have."""


class _Sources(NamedTuple):
    """Where the probability of each row of a smaller vocabulary comes from.

    Args:
        nowhere: Rows of the larger vocabulary that are carried nowhere, bool, shape (base rows,).
        first: For each row the first one that is carried to it, 0 where there is none, shape (rows,).
        empty: Rows that nothing is carried to, bool, shape (rows,).
        rest: Rows of the larger vocabulary that are carried and not the first of their target, shape (others,).
        receivers: The targets of `rest`, each once.
        group: For each of `rest` the index of its target in `receivers`, shape (others,).
    """

    nowhere: torch.Tensor
    first: torch.Tensor
    empty: torch.Tensor
    rest: torch.Tensor
    receivers: torch.Tensor
    group: torch.Tensor

    def to(self, device: torch.device) -> _Sources:
        """Return it on a device."""
        return _Sources(*(each.to(device) for each in self))


@dataclass(frozen=True)
class TokenMap:
    """The tokens of a larger vocabulary in those of a smaller one.

    Args:
        carried: For each row of the larger vocabulary the row that its probability goes to: that of the same token, or
            of the first token that it is split into; `NOWHERE` for a row without a token. int64, shape (base rows,).
        base_lengths: Bytes of normalised text that each row of the larger vocabulary stands for, int64,
            shape (base rows,).
        lengths: The same for the smaller one, shape (rows,).
    """

    carried: torch.Tensor
    base_lengths: torch.Tensor
    lengths: torch.Tensor

    @cached_property
    def is_identity(self) -> bool:
        """Whether both vocabularies are the same, row by row."""
        return torch.equal(self.carried, torch.arange(len(self.lengths)))

    @cached_property
    def keeps_all(self) -> bool:
        """Whether no token was removed: rows are at most renumbered, or had no token."""
        known = self.carried[self.carried >= 0]
        return len(torch.unique(known)) == len(known)

    @cached_property
    def _sources(self) -> _Sources:
        total = len(self.carried)
        known = (self.carried >= 0).nonzero()[:, 0]
        first = torch.full((len(self.lengths),), total, dtype=torch.int64)
        first.scatter_reduce_(0, self.carried[known], known, "amin")
        filled = first < total
        others = self.carried >= 0
        others[first[filled]] = False
        rest = others.nonzero()[:, 0]
        receivers, group = torch.unique(self.carried[rest], return_inverse=True)
        return _Sources(self.carried < 0, first.masked_fill(~filled, 0), ~filled, rest, receivers, group)

    def carry(self, logits: torch.Tensor, log_p: torch.Tensor | None = None) -> torch.Tensor:
        """Return the larger model's next-token distribution over the smaller vocabulary.

        Rows of the larger vocabulary without a token are left out before: the distribution is that over its tokens.

        Args:
            logits: The larger model's, shape (..., base rows).
            log_p: Their log-softmax in float32, where it is known already.

        Returns:
            Natural log-probabilities, float32, shape (..., rows). Rows that nothing is carried to have -inf. Where
            nothing was removed it is the log-softmax of the logits.
        """
        of = None if self.is_identity else self._sources.to(logits.device)
        if of is not None and of.nowhere.any():
            log_p = logits.float().masked_fill(of.nowhere, -torch.inf).log_softmax(-1)
        elif log_p is None:
            log_p = logits.float().log_softmax(-1)
        if of is None:
            return log_p
        found = log_p.index_select(-1, of.first)
        if of.empty.any():
            found = found.masked_fill(of.empty, -torch.inf)
        if len(of.rest):
            # Only rows that several are carried to need exponentials; the others have their own log-probability.
            more = log_p.index_select(-1, of.rest)
            top = more.amax(-1, keepdim=True)  # what is improbable does not vanish in float32
            sums = log_p.new_zeros((*log_p.shape[:-1], len(of.receivers)))
            sums.index_add_(-1, of.group, (more - top).exp())
            merged = torch.logaddexp(found.index_select(-1, of.receivers), sums.log() + top)
            found = found.index_copy(-1, of.receivers, merged)
        return found

    def shared(self, base_ids: Sequence[int], ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where two tokenisations of one text have read the same part of it.

        Args:
            base_ids: The text in the larger vocabulary.
            ids: The same text in the smaller one. Both end where the text ends.

        Returns:
            Positions of tokens after which both have read the same text, in `base_ids` and in `ids`, int64, of one
            length, ascending. The last tokens of both are among them.
        """
        base_left, at_base = _bytes_left(self.base_lengths, base_ids)
        own_left, at_own = _bytes_left(self.lengths, ids)
        return at_base[torch.isin(base_left, own_left)], at_own[torch.isin(own_left, base_left)]

    def covers_alike(self, base_ids: Sequence[int], ids: Sequence[int]) -> bool:
        """Whether two tokenisations stand for as many bytes of normalised text, as those of one text do.

        They do not where one of them has an unknown token for text that the other has tokens for, or a token without a
        row.

        Args:
            base_ids: A text in the larger vocabulary.
            ids: The same text in the smaller one.
        """
        pairs = ((self.base_lengths, base_ids), (self.lengths, ids))
        sizes = []
        for lengths, each in pairs:
            found = torch.as_tensor(each, dtype=torch.int64)
            if bool((found >= len(lengths)).any()):
                return False  # a token without a row
            sizes.append(int(lengths[found].sum()))
        return sizes[0] == sizes[1]


def _bytes_left(lengths: torch.Tensor, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bytes after each token, and the tokens' positions; of tokens that end in one place the last."""
    sizes = lengths[torch.as_tensor(ids, dtype=torch.int64)]
    # From the end: a normaliser may put a space before the text, and not before its continuation.
    left = sizes.sum() - sizes.cumsum(0)
    last = torch.ones(len(left), dtype=torch.bool)
    last[:-1] = left[1:] != left[:-1]
    return left[last], last.nonzero()[:, 0]


def map_tokens(base_tokenizer: Any, tokenizer: Any, base_rows: int, rows: int) -> TokenMap | None:
    """Return how a base's tokens correspond to those of a tokenizer with fewer of them.

    Args:
        base_tokenizer: The base's tokenizer.
        tokenizer: The smaller tokenizer.
        base_rows: Rows of the base's embedding. Tokens beyond them have no probability.
        rows: Rows of the smaller model's embedding. Tokens beyond them cannot be carried to.

    Returns:
        None where the smaller tokenizer has a token that the base's does not have, prepares text in another way, or
        one of them is not of the tokenizers library: then it is another tokenizer, not a part of the base's.
    """
    if not (getattr(base_tokenizer, "is_fast", False) and getattr(tokenizer, "is_fast", False)):
        return None
    before, after = base_tokenizer.get_vocab(), tokenizer.get_vocab()
    if not after.keys() <= before.keys() or _preparation(base_tokenizer) != _preparation(tokenizer):
        return None
    if before == after and base_rows == rows:
        lengths = _lengths(tokenizer, after, rows)
        return TokenMap(torch.arange(rows), lengths, lengths)
    split = tokenizer.backend_tokenizer.model.tokenize
    carried = [NOWHERE] * base_rows  # a tensor takes a microsecond or ten for every single value
    for token, row in before.items():
        if row >= base_rows:
            continue
        if token in after:
            target = after[token]
        elif parts := split(token):
            target = parts[0].id
        else:
            continue
        if target < rows:
            carried[row] = target
    return TokenMap(
        torch.tensor(carried), _lengths(base_tokenizer, before, base_rows), _lengths(tokenizer, after, rows)
    )


def _preparation(tokenizer: Any) -> tuple[bytes | None, ...]:
    """Return what a tokenizer does to text before it splits it into tokens, and what kind of model splits it."""
    backend = tokenizer.backend_tokenizer
    steps = (backend.normalizer, backend.pre_tokenizer)
    prepared = tuple(None if step is None else bytes(step.__getstate__()) for step in steps)
    return (*prepared, type(backend.model).__name__.encode())


def _lengths(tokenizer: Any, vocabulary: dict[str, int], rows: int) -> torch.Tensor:
    """Return the bytes of normalised text that each row stands for; 0 for a row without a token."""
    added = tokenizer.added_tokens_encoder
    byte_level = is_byte_level(tokenizer)
    lengths = [0] * rows
    for token, row in vocabulary.items():
        if row >= rows:
            continue
        if byte_level and token not in added:
            lengths[row] = len(token)  # each character stands for a byte
        elif is_byte(token):
            lengths[row] = 1
        else:
            lengths[row] = len(token.encode("utf-8", "surrogatepass"))
    return torch.tensor(lengths)


def is_byte_level(tokenizer: Any) -> bool:
    """Whether the characters of a tokenizer's tokens stand for bytes, as in GPT-2's.

    Args:
        tokenizer: A tokenizer of the tokenizers library.
    """
    decoder = tokenizer.backend_tokenizer.decoder
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def is_byte(token: str) -> bool:
    """Whether a token stands for a byte by its number, as `<0x0A>` does in vocabularies with byte fallback.

    Args:
        token: The token.
    """
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
