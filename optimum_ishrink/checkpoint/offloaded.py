"""A model whose layers are read from its checkpoint when their turn comes.

The model is the one that `from_pretrained` gives, class and buffers and all, but its weights are placeholders without
memory: NaN in every place, so that a weight that was not read can never pass for one that was. A hook brings the
weights of a layer before it runs, and a thread reads the next layer meanwhile. At most two layers are in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import finalize, ref

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from ..architectures.axes import layer_module
from ..architectures.binding import Binding
from ..architectures.composite import loading_options
from ..architectures.model_class import meta_model, model_class
from ..core.paging import register
from ..core.spool import Spool
from ..errors import SourceError
from .tensors import TensorInfo, preview, read_tensor

SLOTS = 2
"""Layers in memory at once, the one that is read ahead included."""

SMALL = 2**16
"""Elements of a weight outside the layers that is always in memory: norms, but neither embedding nor head."""


@dataclass(frozen=True)
class Part:
    """Weights that are read together: those of a layer, or of a module outside the layers.

    Args:
        module: Name of the module that runs them.
        direct: Where each of its tensors is on disk, by its name in the loaded model.
        converted: Tensors that the files have in another layout than the loaded model, by their names in the files.
    """

    module: str
    direct: Mapping[str, TensorInfo]
    converted: Mapping[str, TensorInfo]


def offloaded_model(
    config: Any, binding: Binding, tensors: Mapping[str, TensorInfo], dtype: torch.dtype, spool: Spool
) -> Any:
    """Return a model that reads its layers from disk when their turn comes.

    Args:
        config: The `PreTrainedConfig` of the checkpoint.
        binding: The binding of its decoder.
        tensors: Where its tensors are, by name.
        dtype: Compute dtype.
        spool: Where hidden states are kept.

    Raises:
        SourceError: The files lack a tensor of the model class, its class writes one itself, or one cannot be read.
    """
    shell = meta_model(config)
    state = {
        name: _placeholder(tensor.shape, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in shell.state_dict().items()
        if name not in shell.all_tied_weights_keys
    }
    model = (
        model_class(config)
        .from_pretrained(None, config=config, state_dict=state, dtype=dtype, **loading_options(config.model_type))
        .eval()
    )
    parts = _parts(model, binding, tensors)
    pager = LayerPager(model, parts, binding, dtype, spool)
    register(model, pager, pager.modules())
    return model


def _placeholder(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    value = torch.full((), torch.nan, dtype=dtype) if dtype.is_floating_point else torch.zeros((), dtype=dtype)
    return value.expand(tuple(shape))


def _parts(model: Any, binding: Binding, tensors: Mapping[str, TensorInfo]) -> list[Part]:
    """Return the parts of a model, its layers first, in their order."""
    state = model.state_dict(keep_vars=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    renamings = [each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)]
    count = binding.sizes["layers"]
    direct: list[dict[str, TensorInfo]] = [{} for _ in range(count)]
    converted: list[dict[str, TensorInfo]] = [{} for _ in range(count)]
    outer: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        bound = binding.tensors[name]
        loaded = bound.parameter
        if loaded not in shapes:
            loaded, _ = rename_source_key(name, renamings, [], model.base_model_prefix, state)
        fits = shapes.get(loaded) == info.shape
        if bound.layer is None:
            if not fits:
                raise SourceError(f"the model class has no tensor {loaded} of shape {list(info.shape)} outside layers")
            outer.setdefault(loaded.rpartition(".")[0], {})[loaded] = info
        elif fits:
            direct[bound.layer][loaded] = info
        else:
            converted[bound.layer][name] = info
    layers = [Part(layer_module(binding, layer), direct[layer], converted[layer]) for layer in range(count)]
    return [*layers, *(Part(module, held, {}) for module, held in outer.items())]


def _zero_rows(model: Any, named: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Return the row of each embedding that its class sets to zero when it is loaded: that of the padding token.

    Args:
        model: The model, with placeholders. What its class has written is NaN no more.
        named: Its tensors by name.

    Raises:
        SourceError: The class has written something else.
    """
    rows: dict[str, int] = {}
    changed = {
        name: tensor
        for name, tensor in named.items()
        if tensor.is_floating_point() and not bool(tensor.flatten()[:1].isnan().all())
    }
    for name, tensor in changed.items():
        same = [other for other, its in changed.items() if its is tensor]  # a head that is tied to the embedding
        owners = [model.get_submodule(other.rpartition(".")[0]) for other in same]
        found = [owner.padding_idx for owner in owners if getattr(owner, "padding_idx", None) is not None]
        row = found[0] if found else None
        if row is None:
            raise SourceError(
                f"{name} is changed by the model class when it is loaded, so layers cannot come from disk; pass "
                "--offload never"
            )
        rows[name] = row
    return rows


class LayerPager:
    """Brings weights into a model and takes them out again.

    Args:
        model: The model, with placeholders.
        parts: Its parts, the layers first.
        binding: The model's binding.
        dtype: Compute dtype.
        spool: Where hidden states are kept.
    """

    def __init__(self, model: Any, parts: Sequence[Part], binding: Binding, dtype: torch.dtype, spool: Spool) -> None:
        self.spool = spool
        self._model = ref(model)
        self._parts = parts
        self.binding = binding
        self._layers = layers = binding.sizes["layers"]
        self._dtype = dtype
        self._named = dict(model.state_dict(keep_vars=True))
        self._kinds = {name: tensor.dtype for name, tensor in self._named.items()}
        self._zero_rows = _zero_rows(model, self._named)
        self._in_memory: OrderedDict[int, list[str]] = OrderedDict()
        self._ahead: tuple[int, Future[dict[str, torch.Tensor]]] | None = None
        self._last: tuple[int, int] = (-2, 0)
        """The layer that was read last, and the direction in which it came."""
        self._scratch: Any = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ishrink-read-ahead")
        finalize(model, self._reader.shutdown, wait=False, cancel_futures=True)
        for number, part in enumerate(parts):
            module = model.get_submodule(part.module) if part.module else model
            if number >= layers and self._is_small(part):
                self._fill(self._read(number))
                continue

            def before(module: Any, _: Any, number: int = number) -> None:
                if "forward" not in module.__dict__:  # a layer that is left out runs without its weights
                    self.bring(number)

            module.register_forward_pre_hook(before)
        self._bring_tied(model, parts)

    def _bring_tied(self, model: Any, parts: Sequence[Part]) -> None:
        """Let a head that shares the embedding's weight bring it, too."""
        head = model.get_output_embeddings()
        for number, part in list(enumerate(parts))[self._layers :]:
            if self._is_small(part):
                continue
            shared = head is not None and any(self._named[name] is head.weight for name in part.direct)
            if shared and model.get_submodule(part.module) is not head:
                head.register_forward_pre_hook(lambda _, __, number=number: self.bring(number))

    def _is_small(self, part: Part) -> bool:
        return all(self._named[name].numel() <= SMALL for name in part.direct)

    def modules(self) -> list[tuple[Any, int]]:
        """Return every module of a layer with the number of its part."""
        model = self._model()
        assert model is not None
        layers = [model.get_submodule(part.module) for part in self._parts[: self._layers]]
        return [(module, number) for number, layer in enumerate(layers) for module in layer.modules()]

    def bring(self, part: int) -> None:
        """Read the weights of a part unless they are in memory, and let those of others go that have to make room.

        Args:
            part: Number of the part.

        Raises:
            SourceError: They cannot be read.
        """
        if part in self._in_memory:
            self._in_memory.move_to_end(part)
            return
        is_layer = part < self._layers
        for other in [other for other in self._in_memory if other >= self._layers]:
            if is_layer:
                self._let_go(other)
        direction = part - self._last[0]
        if is_layer:
            straight = direction in (1, -1) and self._last[1] in (0, direction)
            self._make_room(SLOTS - 1)
            self._last = (part, direction if direction in (1, -1) else 0)
        found = self._taken(part)
        self._fill(found)
        self._in_memory[part] = list(found)
        if is_layer and straight and 0 <= part + direction < self._layers:
            self._make_room(1)
            self._read_ahead(part + direction)

    def release(self) -> None:
        """Take all weights out of memory, but for those of small modules outside the layers."""
        for part in list(self._in_memory):
            self._let_go(part)
        self._drop_ahead()
        self._last = (-2, 0)

    def _make_room(self, most: int) -> None:
        """Let the layers go that were used longest ago, until so many are left."""
        layers = [part for part in self._in_memory if part < self._layers]
        for part in layers[: max(0, len(layers) - most)]:
            self._let_go(part)

    def _let_go(self, part: int) -> None:
        for name in self._in_memory.pop(part):
            tensor = self._named[name]
            tensor.data = _placeholder(tensor.shape, tensor.dtype)

    def _fill(self, found: Mapping[str, torch.Tensor]) -> None:
        for name, values in found.items():
            self._named[name].data = values

    def _taken(self, part: int) -> dict[str, torch.Tensor]:
        """Return the weights of a part: those that were read ahead, or read now."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self._read(part)
        number, reading = ahead
        if number == part:
            return reading.result()
        if not reading.cancel():
            reading.exception()  # let it end before another read begins; an error is raised again when its turn comes
        del reading, ahead
        return self._read(part)

    def _read_ahead(self, part: int) -> None:
        if part not in self._in_memory:
            self._ahead = (part, self._reader.submit(self._read, part))

    def _drop_ahead(self) -> None:
        if self._ahead is not None and not self._ahead[1].cancel():
            self._ahead[1].exception()
        self._ahead = None

    def _read(self, number: int) -> dict[str, torch.Tensor]:
        """Return a part's tensors by their names in the loaded model, as `from_pretrained` would have them."""
        part = self._parts[number]
        found = {name: read_tensor(info).to(self._kinds[name]) for name, info in part.direct.items()}
        if part.converted:
            found.update(self._convert(part))
        for name in self._zero_rows.keys() & found.keys():
            found[name][self._zero_rows[name]] = 0
        return found

    def _convert(self, part: Part) -> dict[str, torch.Tensor]:
        """Return the tensors that the files have in another layout, converted by transformers.

        Raises:
            SourceError: The result is not what the model class has.
        """
        model = self._model()
        assert model is not None
        if self._scratch is None:
            self._scratch = meta_model(model.config)
        scratch = self._scratch
        wanted = [name for name in self._named if name.startswith(f"{part.module}.") and name not in part.direct]
        before = {name: scratch.get_parameter(name) for name in wanted}
        state = {name: read_tensor(info) for name, info in part.converted.items()}
        how = LoadStateDictConfig(dtype=self._dtype, weight_mapping=get_model_conversion_mapping(scratch))
        info, _ = convert_and_load_state_dict_in_model(scratch, state, how)
        faults = sorted(
            {*info.unexpected_keys, *info.mismatched_keys, *info.conversion_errors, *info.error_msgs}, key=str
        )
        faults += [name for name in wanted if name in info.missing_keys]
        if faults:
            raise SourceError(f"the tensors of {part.module} do not load cleanly: {preview([str(x) for x in faults])}")
        found = {name: scratch.get_parameter(name).data.to(self._kinds[name]) for name in wanted}
        for name, parameter in before.items():
            module = scratch.get_submodule(name.rpartition(".")[0])
            setattr(module, name.rpartition(".")[2], parameter)
        return found
