"""Importance: what each KV group, query head, MLP neuron and layer is worth."""

from .batches import Batches
from .criterion import LAYER_CRITERIA, UNIT_CRITERIA, Criterion, layer_criterion, unit_criterion
from .engine import score_model
from .removal import score_spans
from .units import units_to_score
from .weights import key_value_similarity, score_weights

__all__ = [
    "LAYER_CRITERIA",
    "UNIT_CRITERIA",
    "Batches",
    "Criterion",
    "key_value_similarity",
    "layer_criterion",
    "score_model",
    "score_spans",
    "score_weights",
    "unit_criterion",
    "units_to_score",
]
