"""What the values of an `IShrinkConfig` may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architectures.spec import DIMENSIONS
from .core.device import DEVICES, DTYPES, is_device_name
from .errors import RequestError, unknown_name
from .importance.criterion import LAYER_CRITERIA, UNIT_CRITERIA
from .importance.layer_selection import SELECTIONS
from .planning.plan import TARGET_DIMENSIONS
from .planning.target import RUNTIMES
from .recovery.loss import parse_loss
from .recovery.trainable import STARTS, parse_trained
from .recovery.training_text import LABELS

_POSITIVE = (
    *DIMENSIONS,
    "intermediate_multiple",
    "importance_group_size",
    "importance_samples",
    "calibration_samples",
    "calibration_length",
    "eval_samples",
    "eval_length",
    "batch_size",
    "benchmark_new_tokens",
    "benchmark_rounds",
    "recovery_tokens",
    "recovery_length",
    "recovery_top_k",
    "recovery_lora_rank",
    "recovery_lora_alpha",
    "recovery_compensation_samples",
    "recovery_batch_size",
    "recovery_epochs",
    "recovery_save_steps",
    "recovery_patience",
)
_NOT_NEGATIVE = ("keep_first_layers", "keep_last_layers", "num_fewshot", "sample_new_tokens", "seed")
COMPENSATIONS = ("none", "ridge")
LISTS = ("calibration", "eval_text", "tasks", "prune", "recovery_data", "recovery_lora_targets")
"""Values that may be written as text, parted by commas."""

NUMBERS = ("benchmark_prompt_length", "benchmark_batch_size")
"""Values that are one whole number or several."""

_ABOVE_ZERO = ("recovery_temperature", "recovery_sampling_temperature", "recovery_learning_rate")
_SHARES = ("recovery_lora_dropout", "recovery_sampling_filter")


def check_values(config: Any, defaults: Mapping[str, Any]) -> None:
    """Check every value of a config that can be checked without a model.

    Args:
        config: An `IShrinkConfig` with all its values.
        defaults: Its defaults by name; what may be None is None there.

    Raises:
        RequestError: A value is none that its name can have.
    """
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        value, least = getattr(config, name), int(name in _POSITIVE)
        if value is None and defaults[name] is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"{name} must be a whole number of at least {least}, not {value!r}")
    switches = (
        "evaluate",
        "benchmark",
        "score_cache",
        "result_cache",
        "merge_key_value_heads",
        "allow_class_change",
    )
    for name in (*switches, "recovery_checkpointing"):
        if not isinstance(getattr(config, name), bool):
            raise RequestError(f"{name} must be true or false, not {getattr(config, name)!r}")
    if config.compensation not in COMPENSATIONS:
        raise RequestError(unknown_name("compensation", str(config.compensation), COMPENSATIONS))
    if config.dtype not in DTYPES:
        raise RequestError(unknown_name("dtype", str(config.dtype), DTYPES))
    if not is_device_name(config.device):
        raise RequestError(unknown_name("device", str(config.device), DEVICES))
    for name in LISTS:
        value = getattr(config, name)
        if value is None and defaults[name] is None:
            continue
        if value is None or not all(isinstance(item, str) and item for item in value):
            raise RequestError(f"{name} must be a list of names, not {value!r}")
    for name in ("calibration_length", "eval_length", "recovery_length"):
        if getattr(config, name) < 2:
            raise RequestError(f"{name} must be at least 2: one token of context and one to predict")
    for name in (
        "target",
        "include_path",
        "base_model",
        "recovery_teacher",
        "recovery_cache",
        "recovery_keep_adapter",
    ):
        if getattr(config, name) is not None and not isinstance(getattr(config, name), str):
            raise RequestError(f"{name} must be text, not {getattr(config, name)!r}")
    UNIT_CRITERIA[str(config.importance)]
    layer = LAYER_CRITERIA[str(config.layer_importance)]
    if config.layer_selection not in SELECTIONS:
        raise RequestError(unknown_name("layer selection", str(config.layer_selection), SELECTIONS))
    if config.layer_selection == "greedy" and not layer.measures_removal:
        able = ", ".join(name for name in LAYER_CRITERIA if LAYER_CRITERIA[name].measures_removal)
        raise RequestError(
            f"layer_selection='greedy' scores again after each removal, which {layer.name!r} cannot; "
            f"layer_importance can be {able}"
        )
    if config.for_runtime is not None and config.for_runtime not in RUNTIMES:
        raise RequestError(unknown_name("runtime", str(config.for_runtime), RUNTIMES))
    for key in config.prune or ():
        if key not in TARGET_DIMENSIONS:
            raise RequestError(unknown_name("dimension to prune", key, TARGET_DIMENSIONS))
    _check_recovery_values(config, defaults)


def _check_recovery_values(config: Any, defaults: Mapping[str, Any]) -> None:
    for name, share in (*((name, False) for name in _ABOVE_ZERO), *((name, True) for name in _SHARES)):
        value = getattr(config, name)
        if value is None and defaults[name] is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (0 <= value < 1 if share else 0 < value < float("inf")):
            allowed = "at least 0 and below 1" if share else "a number above 0"
            raise RequestError(f"{name} must be {allowed}, not {value!r}")
    if config.recovery != "none":
        parse_loss(str(config.recovery))
    if config.recovery_labels not in LABELS:
        raise RequestError(unknown_name("recovery_labels", str(config.recovery_labels), LABELS))
    if config.recovery_lora_start not in STARTS:
        raise RequestError(unknown_name("recovery_lora_start", str(config.recovery_lora_start), STARTS))
    if config.recovery_compensation not in COMPENSATIONS:
        raise RequestError(unknown_name("recovery_compensation", str(config.recovery_compensation), COMPENSATIONS))
    if config.recovery_compensation != "none" and config.recovery_lora_start != "zero":
        raise RequestError(
            "recovery_compensation='ridge' solves at full rank what recovery_lora_start='closed-form' solves at a "
            "low one; ask for one of them"
        )
    parse_trained(str(config.recovery_train))


def whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    """Return a list of whole numbers that was written as one, as a list, or as text such as `128,512`.

    Args:
        name: The value's name, for the message.
        value: What was given.

    Returns:
        The numbers in their order, none twice.

    Raises:
        RequestError: They are no whole numbers of at least 1.
    """
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    numbers: list[Any] = [int(item) if isinstance(item, str) and item.strip().isdecimal() else item for item in items]
    if not numbers or not all(type(number) is int and number > 0 for number in numbers):
        raise RequestError(f"{name} must be whole numbers of at least 1, such as 64 or 64,512, not {value!r}")
    return tuple(dict.fromkeys(numbers))
