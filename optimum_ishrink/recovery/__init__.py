"""Recovery: training what is left of a model, with labels, with a teacher, or with nothing but the model itself."""

from .checkpoint import save_adapter, train_checkpoint, write_solved, write_trained
from .loss import Term, parse_loss
from .registry import LOSSES
from .run import Trained
from .settings import RecoverySettings
from .teacher import LayerMap, check_tokenizers, check_vocabularies
from .text import LABELS, RecoveryText, recovery_text
from .trained import STARTS, LoraSettings, parse_trained
from .work import work_folder

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
