"""What a plan says of a head that is nearly the embedding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadRecord:
    """How far a head that the config does not tie is from the embedding, and whether it is tied now.

    Args:
        embedding: Name of the embedding's tensor.
        head: Name of the head's tensor.
        relative_error: Norm of the difference over the norm of the embedding.
        largest_row_error: The same of the row that differs most.
        cosine: Cosine of the two, over all their weights.
        embedding_levels: Different values among 16 consecutive weights of the embedding, on average: a 4-bit
            quantisation leaves about 9, bfloat16 15.
        head_levels: The same of the head.
        num_parameters: Parameters of the head, which tying saves.
        tied: Whether the head is tied to the embedding.
    """

    embedding: str
    head: str
    relative_error: float
    largest_row_error: float
    cosine: float
    embedding_levels: float
    head_levels: float
    num_parameters: int
    tied: bool = False

    @property
    def retained(self) -> str:
        """Name of the tensor whose values both have once they are tied: the one that is less coarsely quantised."""
        # One value more or less among 16 is no other quantisation; then what the tokens are read by does not change.
        return self.head if self.head_levels > self.embedding_levels + 1 else self.embedding

    @property
    def same(self) -> bool:
        """Whether the two are equal to the bit."""
        return self.largest_row_error == 0

    def describe(self) -> str:
        """Return how far they are apart, for messages: `"8.1 % apart (11.0 % in the row that ...)"`."""
        if self.same:
            return "equal to the bit"
        return (
            f"{self.relative_error:.1%} apart, {self.largest_row_error:.1%} in the row that differs most, "
            f"cosine {self.cosine:.4f}"
        )
