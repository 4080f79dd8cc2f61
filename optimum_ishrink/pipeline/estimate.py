"""How long a shrink would take on this machine, and what memory and disk it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.memory import free_on
from ..core.sizes import size_in_words
from ..planning.memory import stored_bytes
from .machine_speed import MachineSpeed, measure_speed
from .stage_work import SAMPLING, Work, bytes_from_disk, layer_share, work_of_recovery, work_of_shrink

if TYPE_CHECKING:
    import torch

    from ..architectures.binding import Binding
    from ..configuration import IShrinkConfig

_SPREAD = 2.0
"""What an estimate may be wrong by, as a factor: the stages of the demo take 1.0 to 1.6 times as long."""


@dataclass(frozen=True)
class StageEstimate:
    """One stage.

    Args:
        work: What it has to do.
        seconds: How long that takes.
    """

    work: Work
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """The estimate of a shrink.

    Args:
        stages: Its stages, in their order.
        recovery: What a recovery would add, where none is requested.
        speed: The machine's speeds.
        device: The device that computes.
        dtype: The dtype that it computes in.
        memory: Bytes of the device's memory that are free.
        disk: Bytes that are written.
        from_disk: Bytes of memory, and on disk meanwhile, of a cut whose layers are read from disk.
        offloads: Whether this run would read them from disk.
        refusal: Why it cannot, where that is requested; else None.
    """

    stages: tuple[StageEstimate, ...]
    recovery: StageEstimate | None
    speed: MachineSpeed
    device: str
    dtype: str
    memory: int
    disk: float
    from_disk: tuple[float, float]
    offloads: bool = False
    refusal: str | None = None

    @property
    def seconds(self) -> float:
        """Time of all stages together."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> float:
        """Bytes of memory of the stage that needs most."""
        return max(stage.work.memory for stage in self.stages)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return the rows of a table: stage, what it runs on, time, memory."""
        rows = [_row(stage) for stage in self.stages]
        rows.append(("together", "", duration(self.seconds), size_in_words(self.peak)))
        if self.recovery is not None:
            stage, detail, time, memory = _row(self.recovery)
            rows.append((f"{stage}, if requested", detail, time, memory))
        return rows

    def sentences(self) -> list[str]:
        """Return what the table does not say: the speeds, what is written, and whether the memory is enough."""
        speed = self.speed
        lines = [
            f"Measured here ({self.device}): {speed.operations / 1e9:,.0f} GFLOP/s in {self.dtype}, "
            f"{speed.float32_operations / 1e9:,.0f} in float32; weights for sampling {speed.memory / 1e9:,.1f} GB/s; "
            f"disk {speed.disk_read / 1e9:,.2f} GB/s read, {speed.disk_write / 1e9:,.2f} GB/s written.",
            f"Written to disk: {size_in_words(self.disk)}.",
        ]
        needed, free, memory, disk = map(size_in_words, (self.peak, self.memory, *self.from_disk))
        if self.refusal is not None:
            lines.append(f"offload='always' will be refused: {self.refusal}.")
        if self.offloads:
            lines.append(
                f"Layers are read from disk one by one (--offload): instead of {needed}, that takes about {memory} of "
                f"memory, and {disk} on disk meanwhile."
            )
        elif self.peak > self.memory:
            lines.append(
                f"The model does not fit: {needed} are needed, and {free} are free. Cut on given text with layers "
                f"from disk (--offload always --device cpu), it takes about {memory} of memory, and {disk} on disk "
                "meanwhile; recover it on a larger machine."
            )
        lines.append(
            f"Times are arithmetic, not a run: expect them to be right within a factor of {_SPREAD:g}. Timing of the "
            "result and tasks are not counted."
        )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON: times in seconds, sizes in bytes."""

        def entry(stage: StageEstimate) -> dict[str, Any]:
            return {**asdict(stage.work), "seconds": stage.seconds}

        return {
            "device": self.device,
            "dtype": self.dtype,
            "speed": asdict(self.speed),
            "stages": [entry(stage) for stage in self.stages],
            "seconds": self.seconds,
            "memory": self.peak,
            "free_memory": self.memory,
            "disk": self.disk,
            "from_disk": {"memory": self.from_disk[0], "hidden_states": self.from_disk[1]},
            "offload": self.offloads,
            "recovery": None if self.recovery is None else entry(self.recovery),
        }


def estimate_shrink(
    binding: Binding,
    shape: Mapping[str, int],
    config: IShrinkConfig,
    *,
    folder: Path,
    speed: MachineSpeed | None = None,
    in_memory: bool = False,
) -> Estimate:
    """Estimate a shrink on this machine.

    Args:
        binding: The model; its weights are not read.
        shape: The complete new shape.
        config: The request.
        folder: A folder on the disk that would be written.
        speed: The machine's speeds; None measures them, which takes some seconds.
        in_memory: Whether the model is an object, and not in files.

    Raises:
        RequestError: The device is not there.
        OutputError: The folder cannot be written.
    """
    from ..core.device import resolve_device, resolve_dtype

    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    sizes = binding.sizes
    if speed is None:
        speed = measure_speed(device, dtype, sizes["hidden"], sizes.get("ffn") or sizes["hidden"], folder)
    texts = len(config.eval_text) if config.eval_text else 1
    stored = stored_bytes(binding)
    element = dtype.itemsize
    stages = work_of_shrink(binding, shape, config, element_bytes=element, stored_bytes=stored, eval_texts=texts)
    recovery = None if config.recovers else work_of_recovery(binding, shape, config, element_bytes=element)

    share = layer_share(sizes["hidden"])
    reached = replace(speed, operations=speed.operations * share, memory=speed.memory * share)

    def timed(work: Work) -> StageEstimate:
        return StageEstimate(work, work.seconds(reached, binding.num_parameters() * element))

    offloads, refused = _offloads(binding, config, device, binding.num_parameters() * element, stages, in_memory)
    return Estimate(
        stages=tuple(map(timed, stages)),
        recovery=None if recovery is None else timed(recovery),
        speed=speed,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        memory=free_on(device),
        disk=sum(work.disk_write for work in stages),
        from_disk=bytes_from_disk(binding, shape, config, element_bytes=element),
        offloads=offloads,
        refusal=refused,
    )


def _offloads(
    binding: Binding,
    config: IShrinkConfig,
    device: torch.device,
    weights: int,
    stages: Sequence[Work],
    in_memory: bool,
) -> tuple[bool, str | None]:
    """Return whether the run would read layers from disk, and why not where that is requested."""
    from ..checkpoint.offload_choice import SAMPLES_ITSELF, outgrows, refusal

    if config.offload == "never":
        return False, None
    samples = any(work.stage == SAMPLING for work in stages)
    reason = refusal(binding, device, config, SAMPLES_ITSELF if samples else None, in_memory=in_memory)
    if config.offload == "always":
        return reason is None, reason
    return reason is None and outgrows(weights, free_on(device)), None


def _row(stage: StageEstimate) -> tuple[str, str, str, str]:
    return stage.work.stage, stage.work.detail, duration(stage.seconds), size_in_words(stage.work.memory)


def duration(seconds: float) -> str:
    """Return a time for people: `40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 99.5:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"
