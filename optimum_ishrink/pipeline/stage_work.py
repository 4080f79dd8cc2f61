"""What each stage of a shrink has to do, by arithmetic over a config: operations, bytes and memory.

Nothing is read but the config, so it works for a model that is on no disk here. With the speeds of a machine
(`machine_speed`) it gives the hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ..architectures.axes import input_axis, input_readers
from ..architectures.description import EXPERTS, GROUPS, LAYERS, NEURONS, ROWS
from ..architectures.expressions import axis_length
from ..architectures.operations import active_parameters
from ..core.sizes import size_in_words
from ..importance.criterion import EXPERT_CRITERIA, LAYER_CRITERIA, UNIT_CRITERIA, Criterion
from ..recovery.options import USUAL_LOSS
from ..surgery.few_tokens import are_few
from ..surgery.folds import FOLDS
from ..text.sources import SAMPLED_TOGETHER, equal_shares, parse_sources

if TYPE_CHECKING:
    from ..architectures.binding import Binding
    from ..configuration import IShrinkConfig
    from .machine_speed import MachineSpeed

SAMPLING = "sampling text"
"""The stage in which a model samples its own text."""

_RIDGES_TRIED = 4
"""Ridges that the search tries for a projection: it begins at the best of the layer below and looks on both sides."""

_PASSES: Mapping[str, float] = {"weights": 0, "changes": 2, "gradients": 3, "routing": 1.5}
"""Forward passes that one pass of a criterion is worth: a backward pass to the activations alone is one more, to the
weights as well two. What is not listed is one."""


@dataclass(frozen=True)
class Work:
    """The work of one stage.

    Args:
        stage: Its name.
        detail: What it runs on.
        operations: Floating-point operations of matrix products in the compute dtype.
        float32_operations: Those of sums and solutions of linear systems, in float32.
        weight_reads: How often every weight is read from memory, for a thin product.
        disk_read: Bytes read from disk.
        disk_write: Bytes written to disk.
        memory: Bytes in memory at its peak, beyond the libraries.
    """

    stage: str
    detail: str
    operations: float = 0.0
    float32_operations: float = 0.0
    weight_reads: float = 0.0
    disk_read: float = 0.0
    disk_write: float = 0.0
    memory: float = 0.0

    def seconds(self, speed: MachineSpeed, weight_bytes: float) -> float:
        """Return how long it takes at a machine's speeds.

        What reads and what computes takes turns, so the times add up.

        Args:
            speed: The machine's speeds.
            weight_bytes: Bytes of the model's weights in memory.
        """
        products = self.operations / speed.operations
        reads = self.weight_reads * weight_bytes / speed.memory
        sums = self.float32_operations / speed.float32_operations
        return products + reads + sums + self.disk_read / speed.disk_read + self.disk_write / speed.disk_write


def work_of_shrink(
    binding: Binding,
    shape: Mapping[str, int],
    config: IShrinkConfig,
    *,
    element_bytes: int,
    stored_bytes: int,
    eval_texts: int = 1,
) -> list[Work]:
    """Return the work of each stage of a shrink, in the order of the run.

    Args:
        binding: The model.
        shape: The complete new shape.
        config: The request.
        element_bytes: Bytes of a weight in memory.
        stored_bytes: Bytes of a weight in the checkpoint.
        eval_texts: Texts that quality is measured on.
    """
    job = _Sizes(binding, dict(shape), config, element_bytes)
    stored, new_stored = (binding.num_parameters(sizes) * stored_bytes for sizes in (binding.shape, shape))
    stages = [Work("reading the model", size_in_words(stored), disk_read=stored, memory=job.weights)]
    scoring, repair = _scoring(job), _compensation(job)
    reads = any(work.operations or work.float32_operations for work in (*scoring, *repair)) or ROWS in job.cut
    reads = reads or config.sparsity_reads_text or config.compensation_for is not None
    stages += _sampling(job, calibrates=reads)
    stages += scoring
    stages.append(
        Work(
            "writing the checkpoint",
            f"{size_in_words(new_stored)}, read again and compared",
            disk_read=stored + new_stored,
            disk_write=new_stored,
            memory=job.weights,
        )
    )
    stages += repair
    if config.recovers:
        stages.append(_recovery(job))
    if config.evaluate:
        tokens = eval_texts * config.eval_samples * config.eval_length
        stages.append(
            Work(
                "measuring quality",
                f"{tokens:,} tokens, base and result",
                operations=2 * tokens * (job.active + job.new_active),
                disk_read=new_stored,
                memory=job.weights + job.new_weights,
            )
        )
    return stages


class _Sizes:
    """What the stages count: parameters that a token passes, and bytes."""

    def __init__(self, binding: Binding, shape: dict[str, int], config: IShrinkConfig, element_bytes: int) -> None:
        self.binding, self.shape, self.config, self.element_bytes = binding, shape, config, element_bytes
        self.weights = float(binding.num_parameters() * element_bytes)
        self.new_weights = float(binding.num_parameters(shape) * element_bytes)
        self.active = active_parameters(binding, binding.shape)
        self.new_active = active_parameters(binding, shape)
        self.hidden = binding.sizes["hidden"]
        self.layers = binding.sizes["layers"]

    @property
    def cut(self) -> set[str]:
        """Dimensions that become smaller."""
        before = self.binding.shape
        return {key for key, size in self.shape.items() if size < before.get(key, size)}

    def activations(self, tokens: int) -> float:
        """Bytes of what a backward pass keeps of one batch: what enters and leaves each layer's projections."""
        sizes = self.binding.sizes
        width = 8 * self.hidden + 3 * sizes.get("ffn", 0) * (sizes.get("top_k") or 1)
        return float(tokens * self.layers * width * self.element_bytes)


def layer_share(hidden: int) -> float:
    """Return the share of a plain product's speed that a model's layers reach.

    Norms, attention, activations and the calls themselves take a time that grows slower than the products. The curve
    is fitted to `benchmarks/estimate.py`: about a half at a hidden size of 576, 0.78 at 2,048, 0.88 at 4,096.

    Args:
        hidden: The hidden size.
    """
    return hidden / (hidden + 500)


def _sampling(job: _Sizes, *, calibrates: bool) -> list[Work]:
    """Text that the model itself samples, for calibration, where that is read, and for recovery."""
    config, asked = job.config, []
    if calibrates:
        asked.append((config.calibration, config.calibration_samples, config.calibration_length))
    if config.recovers:
        windows = ceil(config.recovery_tokens / config.recovery_length)
        asked.append((config.recovery_data, windows, config.recovery_length))
    tokens = steps = 0
    for texts, samples, length in asked:
        sources = parse_sources(texts)
        for source, share in zip(sources, equal_shares(samples, len(sources)), strict=True):
            if source.is_self:
                tokens += share * length
                steps += ceil(share / SAMPLED_TOGETHER) * length
    if not tokens:
        return []
    return [
        Work(
            SAMPLING,
            f"{tokens:,} tokens of the model's own",
            weight_reads=steps,
            memory=job.weights,
        )
    ]


def _scoring(job: _Sizes) -> list[Work]:
    config, cut = job.config, job.cut
    tokens = min(config.importance_samples, config.calibration_samples) * config.calibration_length
    chosen: list[tuple[str, Criterion]] = []
    if cut & {NEURONS, GROUPS, "num_attention_heads"}:
        chosen.append(("importance", UNIT_CRITERIA[config.importance]))
    if EXPERTS in cut:
        chosen.append(("expert importance", EXPERT_CRITERIA[config.expert_importance]))
    if LAYERS in cut:
        chosen.append(("layer importance", LAYER_CRITERIA[config.layer_importance]))
    found = []
    for what, criterion in chosen:
        passes = _passes(criterion, job)
        if not passes:
            continue
        kept = criterion.needs in ("changes", "gradients")
        batch = config.batch_windows * config.calibration_length
        found.append(
            Work(
                f"{what} ({criterion.name})",
                f"{tokens:,} tokens",
                operations=2 * tokens * job.active * passes,
                memory=job.weights * (2 if criterion.needs == "gradients" else 1)
                + (job.activations(batch) if kept else 0),
            )
        )
    return found


def _passes(criterion: Criterion, job: _Sizes) -> float:
    """Return how many forward passes a criterion is worth."""
    if criterion.needs == "scores":
        return sum(_passes(UNIT_CRITERIA[name], job) for name in criterion.parts)
    if criterion.needs == "logits":  # each removal runs the layers from its own on: half of them on average
        removals = job.layers * (1 if criterion.name in LAYER_CRITERIA else 32)
        return removals / 2
    return _PASSES.get(criterion.needs, 1.0)


def _compensation(job: _Sizes) -> list[Work]:
    config, cut = job.config, job.cut
    if config.compensation == "none" or not cut & {NEURONS, GROUPS, "num_attention_heads", LAYERS}:
        return []
    tokens = config.calibration_samples * config.calibration_length
    sizes = job.binding.resized(job.shape)
    sources = len(parse_sources(config.calibration))
    folds = min(sources, FOLDS) if sources > 1 else FOLDS
    products, largest = 0.0, 0.0
    for width, rows in _refitted(job, sizes):
        count = _of_rows if are_few(tokens, width) else _of_sums
        operations, nbytes = count(tokens, width, rows, folds)
        products += operations
        largest = max(largest, nbytes)
    streams = 3 * tokens * job.hidden * job.element_bytes
    return [
        Work(
            "compensation (ridge)",
            f"{tokens:,} tokens, every layer in turn",
            operations=2 * tokens * (2 * job.active + job.new_active),
            float32_operations=products,
            memory=job.weights + streams + largest,
        )
    ]


def _of_sums(tokens: int, width: int, rows: int, folds: int) -> tuple[float, float]:
    """Return operations in float32, and bytes, of a regression by the sums over its tokens.

    Args:
        tokens: Tokens to fit on.
        width: Inputs of the projection.
        rows: Its outputs.
        folds: Number of folds.
    """
    sums = tokens * (1.5 * width * width + 2 * width * rows)
    solves = (folds * _RIDGES_TRIED + 2) * (width**3 / 3 + 2 * width * width * rows / 4)
    return sums + solves, (folds + 2) * 4.0 * width * (width + rows)


def _of_rows(tokens: int, width: int, rows: int, folds: int) -> tuple[float, float]:
    """Return the same of a regression by the tokens themselves, where they are few.

    Args:
        tokens: Tokens to fit on.
        width: Inputs of the projection.
        rows: Its outputs.
        folds: Number of folds.
    """
    fitted = tokens * (folds - 1) / folds
    products = folds * (1.5 * fitted**2 + 2 * fitted * (tokens - fitted)) * width + 2 * tokens * width * rows
    solves = folds * _RIDGES_TRIED * (fitted**3 / 3 + 2 * fitted * tokens * rows / 4)
    # The last solution is in float64, which counts twice.
    last = 2 * (1.5 * tokens**2 * width + tokens**3 / 3 + 2 * tokens**2 * rows + 2 * tokens * width * rows)
    held = folds * 4.0 * fitted * tokens + tokens * (2 * width + 8 * rows) + 8 * (tokens**2 + width * rows)
    return products + solves + last, held


def _refitted(job: _Sizes, sizes: Mapping[str, int]) -> list[tuple[int, int]]:
    """Return inputs and outputs of each projection that is fitted again."""
    found = []
    keys = [
        key for key in ("num_attention_heads", NEURONS) if key in job.cut or (key == NEURONS and LAYERS in job.cut)
    ]
    if GROUPS in job.cut and "num_attention_heads" not in keys:
        keys.append("num_attention_heads")
    for key in keys:
        for bound in input_readers(job.binding, key):
            if bound.layer is not None and bound.layer < sizes["layers"] and bound.expert is None:
                inputs = input_axis(bound)
                outputs = bound.axes[1 if bound.transposed else 0]
                found.append((axis_length(inputs, sizes), axis_length(outputs, sizes)))
    return found


def work_of_recovery(binding: Binding, shape: Mapping[str, int], config: IShrinkConfig, *, element_bytes: int) -> Work:
    """Return the work of a recovery; one by `skew-reverse-kl` where the config names none.

    Args:
        binding: The base.
        shape: The complete new shape.
        config: The request.
        element_bytes: Bytes of a weight in memory.
    """
    return _recovery(_Sizes(binding, dict(shape), config, element_bytes))


def _recovery(job: _Sizes) -> Work:
    config = job.config
    tokens = config.recovery_tokens * config.recovery_epochs
    loss = config.recovery if config.recovers else USUAL_LOSS
    trained = config.recovery_train != "lora"
    passes = 6.0 if trained else 4.0  # with LoRA no gradient of the weights themselves is taken
    teachers = max(1, len(config.teachers))  # each as large as the base
    per_parameter = 12 if trained else 0  # float32 weights, and the optimiser's two moments
    batch = config.recovery_batch_size * config.recovery_length
    reads = 0.0
    if config.recovery_on_policy:
        together = config.recovery_on_policy_steps * config.recovery_batch_size
        rounds = tokens / (together * config.recovery_length)
        calls = ceil(together * config.recovery_on_policy / SAMPLED_TOGETHER)
        reads = rounds * calls * config.recovery_length * job.new_weights / job.weights
    return Work(
        f"recovery ({loss})",
        f"{tokens:,} tokens",
        weight_reads=reads,
        operations=tokens * (passes * job.new_active + (2 * teachers * job.active if loss != "ce" else 0)),
        memory=teachers * job.weights
        + job.new_weights
        + per_parameter * job.new_weights / job.element_bytes
        + job.activations(batch),
    )


def bytes_from_disk(
    binding: Binding, shape: Mapping[str, int], config: IShrinkConfig, *, element_bytes: int
) -> tuple[float, float]:
    """Return what a cut takes whose layers are read from disk: bytes of memory, and on disk meanwhile.

    In memory are two layers, what is outside of the layers with one copy that a product makes of the head, and the
    sums of the projection that is re-fit.

    Args:
        binding: The model.
        shape: The complete new shape.
        config: The request.
        element_bytes: Bytes of a weight in memory.
    """
    job = _Sizes(binding, dict(shape), config, element_bytes)
    sizes = binding.sizes
    tokens = config.calibration_samples * config.calibration_length
    layers = 2 * max(binding.layer_parameters(sizes))
    outside = binding.outer_parameters(sizes) + sizes["vocab"] * sizes["hidden"]
    sums = max(
        (
            _of_rows(tokens, width, rows, FOLDS)[1] if are_few(tokens, width) else 3 * 4.0 * width * (width + rows)
            for width, rows in _refitted(job, binding.resized(shape))
        ),
        default=0.0,
    )
    return (layers + outside) * element_bytes + sums, room_needed(binding, shape, config, element_bytes=element_bytes)


def room_needed(binding: Binding, shape: Mapping[str, int], config: IShrinkConfig, *, element_bytes: int) -> int:
    """Return about how many bytes a cut whose layers are read from disk keeps there at most.

    While it scores, these are the hidden states after every layer; while it repairs, those of the calibration text and
    the sums of the projection that is re-fit.

    Args:
        binding: The model.
        shape: The complete new shape.
        config: The request.
        element_bytes: Bytes of a hidden state's element: that of the compute dtype.
    """
    hidden, inner = binding.sizes["hidden"], binding.sizes.get("ffn") or 0
    scored = min(config.importance_samples, config.calibration_samples) * config.calibration_length
    states = (binding.sizes["layers"] + 3) * scored * hidden * element_bytes
    if config.compensation == "none":
        return states
    tokens = config.calibration_samples * config.calibration_length
    refitted = _refitted(_Sizes(binding, dict(shape), config, element_bytes), binding.resized(shape))
    sums = max(
        (tokens * tokens if are_few(tokens, width) else width * (width + rows) for width, rows in refitted), default=0
    )
    return int(max(states, tokens * (6 * hidden + inner) * element_bytes + FOLDS * sums * 4))
