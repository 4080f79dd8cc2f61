"""Recovery: training what is left of a model, with labels, with a teacher, or with nothing but the model itself."""

from .loss import Term, parse_loss
from .loss_registry import LOSSES
from .settings import RecoverySettings
from .teacher import LayerMap, check_tokenizers, check_vocabularies
from .train_checkpoint import save_adapter, train_checkpoint, write_solved, write_trained
from .trainable import STARTS, LoraSettings, parse_trained
from .training import Trained
from .training_text import LABELS, RecoveryText, recovery_text
from .work_folder import work_folder

__all__ = [
    "LABELS",
    "LOSSES",
    "STARTS",
    "LayerMap",
    "LoraSettings",
    "RecoverySettings",
    "RecoveryText",
    "Term",
    "Trained",
    "check_tokenizers",
    "check_vocabularies",
    "parse_loss",
    "parse_trained",
    "recovery_text",
    "save_adapter",
    "train_checkpoint",
    "work_folder",
    "write_solved",
    "write_trained",
]
