"""From a source checkpoint to a smaller one, streamed from file to file and verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..architectures.binding import Binding, BoundTensor
from ..architectures.expressions import axis_length
from ..architectures.slicing import Keep, is_dropped, new_name, slice_tensor
from ..checkpoint.tensors import OutgoingTensor, TensorInfo, read_tensor
from ..checkpoint.writing import (
    MAX_SHARD_SIZE,
    carry_files,
    compare_written,
    verify_checkpoint,
    write_config,
    write_weights,
)
from ..core.scratch import Scratch
from ..errors import VerificationError
from ..report.plan import Plan
from .expert_merge import ExpertMerger
from .shards import WrittenShards
from .units import Merges, merge_tensor, retained_units


def outgoing_tensors(tensors: Mapping[str, TensorInfo], binding: Binding, plan: Plan) -> list[OutgoingTensor]:
    """Return what the new checkpoint holds; nothing is read yet.

    Args:
        tensors: The source's tensors.
        binding: The model.
        plan: The plan.
    """
    position = {layer: i for i, layer in enumerate(plan.layers)}
    mergers = {
        layer: ExpertMerger(lambda name: read_tensor(tensors[name]), binding, layer, merged)
        for layer, merged in zip(plan.layers, plan.expert_merges or (), strict=False)
    }
    outgoing = []
    new_sizes = binding.resized(plan.new_shape)
    scratch = Scratch()  # every tensor is written before the next one is made
    for bound in binding.tensors.values():
        source = tensors[bound.name]
        if bound.layer is not None and bound.layer not in position:
            continue
        retained = (
            retained_units(binding, plan, position[bound.layer])
            if bound.layer is not None
            else {"layers": plan.layers}  # an embedding can hold a part for every layer
        )
        if is_dropped(bound, retained):
            continue
        merges = plan.merges[position[bound.layer]] if plan.merges is not None and bound.layer is not None else None
        merger = None if bound.layer is None else mergers.get(bound.layer)
        merger = merger if merger is not None and merger.changes(bound) else None
        whole = merger is None and not any(bound.counts(size) for size in retained)
        shape = source.shape if whole else tuple(axis_length(axis, new_sizes) for axis in bound.axes)
        named = replace(bound, name=source.stored_as or bound.name)
        name = named.name if bound.layer is None else new_name(named, position[bound.layer], retained)
        if whole:
            outgoing.append(OutgoingTensor(name, source.dtype, shape, source=source))
        else:
            make = partial(_cut, scratch, source, bound, binding.sizes, retained, merges, merger)
            outgoing.append(OutgoingTensor(name, source.dtype, shape, make=make))
    return outgoing


def _cut(
    scratch: Scratch,
    source: TensorInfo,
    bound: BoundTensor,
    sizes: Mapping[str, int],
    retained: Keep,
    merges: Merges | None,
    merger: ExpertMerger | None,
) -> torch.Tensor:
    if merger is not None:
        return slice_tensor(merger(bound), bound, sizes, retained)
    if merges is not None:
        return merge_tensor(read_tensor(source, scratch), bound, sizes, retained, merges)
    return slice_tensor(read_tensor(source, scratch), bound, sizes, retained, scratch)


def write_checkpoint(
    source_folder: Path,
    tensors: Mapping[str, TensorInfo],
    binding: Binding,
    plan: Plan,
    edited_config: Mapping[str, Any],
    folder: Path,
    *,
    max_shard_size: int = MAX_SHARD_SIZE,
    progress: Callable[[int], None] | None = None,
    shards: WrittenShards | None = None,
) -> None:
    """Cut a checkpoint into an existing, empty folder and verify it.

    Every tensor is read again and compared with what was cut, one at a time: no model is loaded for it.

    Args:
        source_folder: Folder of the source, for the files that are carried over.
        tensors: The source's tensors.
        binding: The model.
        plan: The plan.
        edited_config: Contents of the new config.json.
        folder: Where to write.
        max_shard_size: Maximum bytes of one weight file.
        progress: Called with the number of bytes of each tensor once it is written.
        shards: Where a killed run has left weight files that are whole; None where there are none.

    Raises:
        OutputError: There is no space left, or no permission to write.
        VerificationError: The result is not what its config's model class expects, or not what was planned.
    """
    outgoing = outgoing_tensors(tensors, binding, plan)
    found = shards.take(folder) if shards is not None else frozenset[str]()
    write_weights(
        outgoing,
        folder,
        max_shard_size=max_shard_size,
        progress=progress,
        found=found,
        on_file=None if shards is None else shards.store,
    )
    write_config(edited_config, folder)
    carry_files(source_folder, folder)
    count = verify_checkpoint(folder, {tensor.name: tensor.dtype for tensor in outgoing})
    if shards is None or not shards.compared:
        compare_written(outgoing, folder)
    if shards is not None:
        shards.compared = True
    if count != plan.new_num_parameters:
        raise VerificationError(f"the files hold {count:,} parameters, the plan says {plan.new_num_parameters:,}")
