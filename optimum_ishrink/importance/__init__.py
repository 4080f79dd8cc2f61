"""Importance: what each KV group, MLP neuron and layer is worth."""

from .engine import key_value_similarity, score_model, score_weights
from .registry import LAYER_CRITERIA, UNIT_CRITERIA, Criterion, layer_criterion, unit_criterion

__all__ = [
    "LAYER_CRITERIA",
    "UNIT_CRITERIA",
    "Criterion",
    "key_value_similarity",
    "layer_criterion",
    "score_model",
    "score_weights",
    "unit_criterion",
]
