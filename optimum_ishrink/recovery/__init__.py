"""Recovery: training what is left of a model, with labels, with a teacher, or with nothing but the model itself."""

from .loss import Term, parse_loss
from .registry import LOSSES

__all__ = ["LOSSES", "Term", "parse_loss"]
