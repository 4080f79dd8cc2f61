"""How each method of `rivals.py` makes a smaller checkpoint, all from the same model and the same calibration text.

The others' libraries are asked for nothing but what they remove; files are copied, exported and measured in one way.
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from optimum_ishrink import IShrinkConfig
from optimum_ishrink.checkpoint.session import Session
from optimum_ishrink.checkpoint.source import Source, open_source
from optimum_ishrink.core.output import staged_folder
from optimum_ishrink.errors import RequestError, ShapeError
from optimum_ishrink.pipeline.job import shrink_job
from optimum_ishrink.pipeline.runner import SHRINK
from optimum_ishrink.pipeline.runner import run as run_stages
from optimum_ishrink.pipeline.trimming import find_vocabulary
from optimum_ishrink.planning.limits import BYTES, PARAMS, Limit
from optimum_ishrink.planning.shape import resolve_shape
from optimum_ishrink.search.gguf_files import write_base_file
from optimum_ishrink.search.recipe import plain_types
from optimum_ishrink.search.template import Template, read_template
from optimum_ishrink.text.calibration import Calibration

CALIBRATION = ("wikitext2.train.txt", "arc_easy.train.jsonl", "openbookqa.train.jsonl")
THESIS = Path(__file__).parent.parent / "configs" / "ishrink-thesis.yaml"
WIDTH = "intermediate_size"
STEP = 32
"""Widths are multiples of it: the blocks of GGUF's plain types have so many weights."""

REFERENCE = "q8_0"
"""Type of the unpruned model's file that relative limits on bytes refer to, as `ishrink search` has it."""

PERCENTS = [number / 2 for number in range(1, 180)]
"""Per cent of the parameters that recipes of this project may remove to fit into a file."""


@dataclass(frozen=True)
class Contender:
    """One row of the comparison.

    Args:
        method: Who prunes: one of `METHODS`, `search` for a finished search, or `plain` for the unpruned model.
        target: The budget as `ishrink search` takes it; empty for the unpruned model.
        quantization: Type of the matrices in its file; `mixed` where each has its own.
    """

    method: str
    target: str
    quantization: str

    @property
    def name(self) -> str:
        """What the row is called."""
        return " ".join(part for part in (self.method, self.target, self.quantization) if part)


class Base:
    """The unpruned model, and what all methods share.

    Args:
        model: Its folder.
        data: The folder with the text files.
        work: Where checkpoints and files stay.
        libraries: Folders that the others' libraries are installed in.
    """

    def __init__(self, model: str, data: Path, work: Path, libraries: Sequence[Path]) -> None:
        self.source: Source = open_source(model)
        self.work = work
        self.libraries = libraries
        self.config = IShrinkConfig(
            calibration=["self", *(str(data / name) for name in CALIBRATION)],
            evaluate=False,
            benchmark=False,
            for_runtime="llama.cpp",
        )
        self.session = Session(self.source, self.config)

    @cached_property
    def windows(self) -> torch.Tensor:
        """The calibration text, int64, shape (samples, length); drawn once and stored."""
        path = self.work / "calibration.safetensors"
        if not path.is_file():
            save_file({"windows": Calibration(self.config, self.session).windows.contiguous()}, path)
        return load_file(path)["windows"]

    @cached_property
    def template(self) -> Template:
        """The unpruned model's file of 16 bits, from which the bytes of smaller ones follow."""
        path = self.work / "base.gguf"
        if not path.is_file():
            write_base_file(self.source, path)
        return read_template(path, self.source.binding)

    @cached_property
    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradients of the next-token loss over the calibration text, of the MLPs' weights in float32."""
        model = self.source.load_model(torch.float32, self.session.device)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".mlp." in name)
        for window in torch.split(self.windows, self.config.batch_windows):
            ids = window.to(self.session.device)
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.session.dtype is torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
        return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}

    def file_bytes(self, shape: Mapping[str, int], quantization: str) -> int:
        """Return the bytes of a file in one plain type; with a smaller vocabulary it has less.

        Args:
            shape: The model's sizes by config key.
            quantization: The type.
        """
        return self.template.nbytes(shape, plain_types(self.template, quantization))

    @contextmanager
    def library(self, name: str) -> Iterator[Any]:
        """Yield another library, imported from where it was installed; its warnings and log are left out.

        Args:
            name: Its package.
        """
        sys.path.extend(path for path in map(str, self.libraries) if path not in sys.path)
        level = logging.root.level
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = importlib.import_module(name)
            logging.root.setLevel(level)  # optipfair configures logging
            logging.getLogger(name).setLevel(logging.WARNING)
            yield library


@dataclass(frozen=True)
class Method:
    """How checkpoints are made.

    Args:
        size: Returns what keeps a budget in a file of a type: a width, or a target of this project.
        make: Writes the checkpoint of such a size into a folder that does not exist yet.
    """

    size: Callable[[Base, Limit, str], str]
    make: Callable[[Base, str, Path], None]


def width(base: Base, limit: Limit, quantization: str) -> str:
    """Return the width that keeps a budget where nothing but neurons may go.

    Args:
        base: The base.
        limit: The budget. Parameters are met as nearly as possible, bytes are not exceeded.
        quantization: Type of the file.

    Raises:
        RequestError: No width keeps it.
    """
    shape = dict(base.source.binding.shape)
    widths = range(STEP, shape[WIDTH], STEP)
    if limit.metric == PARAMS:
        count = base.source.binding.num_parameters
        wanted = limit.against(count())
        return str(min(widths, key=lambda width: abs(count({**shape, WIDTH: width}) - wanted)))
    most = limit.against(base.file_bytes(shape, REFERENCE))
    fitting = [width for width in widths if base.file_bytes({**shape, WIDTH: width}, quantization) <= most]
    if not fitting:
        least = base.file_bytes({**shape, WIDTH: STEP}, quantization)
        raise RequestError(f"even with {STEP} neurons a {quantization} file has {least / 1e6:.1f} MB")
    return str(max(fitting))


def save(base: Base, model: Any, folder: Path) -> None:
    """Write a model that another library pruned as a checkpoint with the base's tokenizer.

    Args:
        base: The base.
        model: The model.
        folder: Where to.
    """
    widths = {layer.mlp.gate_proj.out_features for layer in model.model.layers}
    if widths != {model.config.intermediate_size}:
        raise RequestError(f"the layers have {sorted(widths)} neurons, and a config has one number for all of them")
    with staged_folder(folder) as staged:
        model.save_pretrained(staged)
        for file in base.source.folder.iterdir():
            if file.suffix not in (".safetensors", ".gguf") and not (staged / file.name).exists():
                shutil.copy(file, staged / file.name)
        config = json.loads((base.source.folder / "config.json").read_text(encoding="utf-8"))
        config[WIDTH] = model.config.intermediate_size  # as the base has it in all else
        (staged / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def optipfair(base: Base, size: str, folder: Path) -> None:
    """Prune neurons by optipfair's peak-to-peak magnitudes times activations of the calibration text.

    Args:
        base: The base.
        size: The width.
        folder: Where to.
    """
    width, whole = int(size), base.source.binding.shape[WIDTH]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(base.windows), batch_size=base.config.batch_windows
    )
    model = base.source.load_model(base.session.dtype, base.session.device)
    with base.library("optipfair") as library:
        # Half a neuron more: it rounds down. `MAW` is the name under which it takes text.
        library.prune_model(
            model,
            pruning_type="MLP_GLU",
            neuron_selection_method="MAW",
            pruning_percentage=100 * (whole - width + 0.5) / whole,
            dataloader=loader,
            show_progress=False,
        )
    save(base, model, folder)


def torch_pruning(base: Base, size: str, folder: Path) -> None:
    """Prune neurons by Torch-Pruning's dependency graph and group Taylor scores of the calibration text.

    Args:
        base: The base.
        size: The width.
        folder: Where to.
    """
    width = int(size)
    model = base.source.load_model(torch.float32, base.session.device)
    model.config.use_cache = False
    for name, parameter in model.named_parameters():
        if name in base.gradients:
            parameter.grad = base.gradients[name].clone()
    others = [
        module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith(("gate_proj", "up_proj"))
    ]
    with base.library("torch_pruning") as library:
        library.pruner.MetaPruner(
            model,
            example_inputs=base.windows[:1, :8].to(base.session.device),
            importance=library.importance.GroupTaylorImportance(),
            pruning_ratio=1 - width / base.source.binding.shape[WIDTH],
            round_to=STEP,
            ignored_layers=others,
            output_transform=lambda output: output.logits,
        ).step()
    model.config.intermediate_size = width
    save(base, model.to(base.session.dtype), folder)


def ours(base: Base, size: str, folder: Path) -> None:
    """Prune rows and neurons by this project's defaults.

    Args:
        base: The base.
        size: The target.
        folder: Where to.
    """
    _shrink(base, base.config, size, folder)


def thesis(base: Base, size: str, folder: Path) -> None:
    """Prune layers and neurons by the recipe of the iShrink thesis.

    Args:
        base: The base.
        size: The target.
        folder: Where to.
    """
    _shrink(base, thesis_recipe(base), size, folder)


def thesis_recipe(base: Base) -> IShrinkConfig:
    """Return the recipe, with the calibration text that all have.

    Args:
        base: The base.
    """
    shared = {name: getattr(base.config, name) for name in ("calibration", "evaluate", "benchmark", "for_runtime")}
    return IShrinkConfig.from_yaml(THESIS).replace(target=None, **shared)


def _shrink(base: Base, config: IShrinkConfig, target: str, folder: Path) -> None:
    config = config.replace(target=target)
    session = Session(base.source, config)
    session.loaded = base.session.model
    job = shrink_job(session, config, folder)
    job.calibration.windows = base.windows
    run_stages(SHRINK, job)


def share(base: Base, config: IShrinkConfig, limit: Limit, quantization: str) -> str:
    """Return how many parameters have to go for a budget, as a target.

    Args:
        base: The base.
        config: What may go.
        limit: The budget.
        quantization: Type of the file.

    Raises:
        RequestError: Nothing keeps it, or it is of another kind.
    """
    if limit.metric == PARAMS:
        return limit.text
    if limit.metric != BYTES:
        raise RequestError(f"methods are compared at equal {PARAMS} or {BYTES}, not {limit.metric}")
    binding = base.source.binding
    most = limit.against(base.file_bytes(binding.shape, REFERENCE))
    vocabulary = find_vocabulary(base.source, config.replace(target="params=-50%"))  # any target asks for it
    for percent in PERCENTS:
        target = f"params=-{percent}%"
        try:
            shape = resolve_shape(binding, config.replace(target=target), vocabulary and vocabulary[1])
        except ShapeError:  # no shape is so near to this target
            continue
        if base.file_bytes(shape, quantization) <= most:
            return target
    raise RequestError(f"the recipe has no {quantization} file that keeps {limit.text}")


METHODS: Mapping[str, Method] = {
    "optipfair": Method(width, optipfair),
    "torch-pruning": Method(width, torch_pruning),
    "thesis": Method(lambda base, *asked: share(base, thesis_recipe(base), *asked), thesis),
    "ishrink": Method(lambda base, *asked: share(base, base.config, *asked), ours),
}
