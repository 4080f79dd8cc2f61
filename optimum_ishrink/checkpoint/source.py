"""Opening a source: a Hub id, a folder of safetensors, a URL, a GGUF file, or a model in memory.

Whatever it was, the rest of the package sees a folder with config.json, tokenizer files and safetensors.
"""

from __future__ import annotations

import re
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..architectures.binding import Binding
from ..architectures.description import HEADS, is_ignored
from ..architectures.expressions import axis_length
from ..architectures.model_class import bind_config, parse_config
from ..core.device import dtype_name
from ..core.json_files import read_json
from ..core.storage import is_url
from ..errors import SourceError
from .card_metadata import card_languages, card_license
from .comparing import same_bytes
from .generation import check_generation_config
from .gguf_reading import convert_gguf, gguf_metadata
from .hub_download import download_checkpoint, repository_files
from .loaded_model import check_loaded, check_name, unwrapped
from .loading import load_model, load_tokenizer
from .missing_files import no_config
from .older_keys import add_older_keys
from .stored_names import by_parameter
from .tensors import TensorInfo, preview, read_index, refuse_pickles, stored_names
from .url_download import fetch_checkpoint


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    Args:
        name: What the user called it; cards and reports show it.
        folder: Where config.json and the safetensors are.
        revision: Commit of a Hub repository, or None.
        is_hub_id: Whether `name` can be looked up on the Hub.
        license: The licence from the source's card, if it has one.
        notes: What was done to turn it into a plain checkpoint, as sentences for the card.
        license_details: `license_name` and `license_link` of the source's card, where it has them.
        gguf_file: Name of the GGUF file that it was read from, or None.
        languages: The languages that the source's card names, as codes of the Hub.
        in_memory: Whether it was saved from a model object.
        read_from: The GGUF file itself, where there is one: the folder is made anew for each run.
    """

    name: str
    folder: Path
    revision: str | None = None
    is_hub_id: bool = False
    license: str | None = None
    notes: tuple[str, ...] = ()
    license_details: Mapping[str, str] = field(default_factory=dict, hash=False)
    gguf_file: str | None = None
    languages: tuple[str, ...] = ()
    in_memory: bool = False
    read_from: Path | None = None
    _owner: object = field(default=None, repr=False, compare=False)

    @property
    def is_copy(self) -> bool:
        """Whether the folder is a copy, of what is on the Hub or at a URL: nothing is changed in it."""
        return self.is_hub_id or is_url(self.name)

    @property
    def display_name(self) -> str:
        """Its name for cards and reports: a Hub id or the name of a folder, never a full path."""
        return self.name if self.is_hub_id else Path(self.name).resolve().name

    @cached_property
    def raw_config(self) -> Mapping[str, Any]:
        """The contents of config.json."""
        raw = read_json(self.folder / "config.json")
        if not isinstance(raw, dict):
            raise SourceError(f"{self.folder / 'config.json'} is not a JSON object")
        return raw

    @cached_property
    def _bound(self) -> tuple[Any, Binding]:
        return bind_config(self.raw_config)

    @property
    def config(self) -> Any:
        """The config as its class reads it; of a model of several parts, that of its text decoder."""
        return self._bound[0]

    @property
    def binding(self) -> Binding:
        """The architecture's description, bound to this model."""
        return self._bound[1]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every parameter in the files, checked against the model class, without buffers and tied copies.

        The names are those of the model class, even where the files lack the base model's prefix.

        Raises:
            SourceError: The files are corrupt, or they do not hold what the config's model class expects.
        """
        tensors, heads = self._matched
        for head, info in heads.items():
            self._check_tied(head, info, tensors)
        return tensors

    @cached_property
    def _matched(self) -> tuple[Mapping[str, TensorInfo], Mapping[str, TensorInfo]]:
        """Every parameter, and every second copy of a tied head, as the headers of the files have them."""
        stored = by_parameter(read_index(self.folder), parse_config(self.raw_config))
        expected = self.binding.tensors
        names = stored_names(expected, stored)
        missing = sorted(name for name in expected if names[name] not in stored)
        if missing:
            raise SourceError(f"{self.name} lacks {len(missing)} tensors that its config expects: {preview(missing)}")
        tied = set(HEADS) - expected.keys() if self.config.tie_word_embeddings else set()
        description = self.binding.description
        prefixes = {"", *(name.removesuffix(found) for name, found in names.items())}
        unexpected = sorted(
            name
            for name in stored.keys() - set(names.values()) - tied
            if not any(is_ignored(description, prefix + name) for prefix in prefixes)
        )
        if unexpected:
            raise SourceError(
                f"{self.name} holds {len(unexpected)} tensors that its config does not expect: {preview(unexpected)}"
            )
        sizes = self.binding.sizes
        for name, bound in expected.items():
            shape = tuple(axis_length(axis, sizes) for axis in bound.axes)
            found = stored[names[name]].shape
            if found != shape:
                raise SourceError(f"{self.name} holds {name} as {list(found)}; its config expects {list(shape)}")
        heads = {head: stored[head] for head in sorted(tied & stored.keys())}
        return {name: stored[names[name]] for name in expected}, heads

    def _check_tied(self, head: str, stored: TensorInfo, tensors: Mapping[str, TensorInfo]) -> None:
        """Refuse a stored head that differs from the embedding to which the config ties it.

        transformers does not tie the two then, so the model that runs is not the one that the config describes.
        """
        outer = (bound for bound in self.binding.tensors.values() if bound.layer is None and len(bound.axes) == 2)
        embedding = next((bound.name for bound in outer if bound.counts("vocab")), None)
        if embedding is not None and not same_bytes(stored, tensors[embedding]):
            raise SourceError(
                f"{self.name} holds {head} with values that differ from {embedding}, but its config ties them: "
                'set "tie_word_embeddings": false in its config.json to use both, or remove the one that is stale'
            )

    def check(self) -> None:
        """Read the configs and the headers of the weight files, so that problems are found before any long work.

        Raises:
            ArchitectureError: The architecture is not supported.
            SourceError: The files are corrupt, do not hold what the config's model class expects, or the generation
                config cannot be used.
        """
        len(self.tensors)
        check_generation_config(self.folder)

    def check_headers(self) -> None:
        """Check the headers of the weight files against the config; the weights themselves are not read.

        Raises:
            ArchitectureError: The architecture is not supported.
            SourceError: The files are corrupt, or do not hold what the config's model class expects.
        """
        len(self._matched)

    def check_architecture(self) -> None:
        """Read the config, so that an unsupported architecture is found before any long work.

        Raises:
            ArchitectureError: The architecture is not supported.
            SourceError: The config cannot be used.
        """
        len(self._bound)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(info.nbytes for info in self.tensors.values())

    def load_tokenizer(self) -> Any:
        """Load the tokenizer; a folder without one is a `SourceError`."""
        return load_tokenizer(self.folder)

    def load_model(self, dtype: torch.dtype, device: torch.device) -> Any:
        """Load the model for computing; the dtype of the files does not change."""
        return load_model(self.folder, dtype, device)


def open_source(
    model: str | Path | PreTrainedModel | Source,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    gguf_file: str | None = None,
    gguf_dtype: torch.dtype = torch.bfloat16,
) -> Source:
    """Open a source.

    Args:
        model: Hub id, folder, URL of fsspec such as `s3://bucket/model`, or a loaded model, also within
            `torch.compile` or `DataParallel`; a source is returned as it is.
        tokenizer: The loaded model's tokenizer.
        revision: Branch, tag or commit of a Hub repository.
        token: Hub token; never stored.
        gguf_file: Name of a GGUF file in the folder or repository. It is converted to safetensors.
        gguf_dtype: Dtype of those safetensors. bfloat16 by default, the dtype in which compact models are published.

    Raises:
        SourceError: There is no usable checkpoint, or the object is no model that can be saved as one.
    """
    if isinstance(model, Source):
        return model
    loaded = unwrapped(model)
    if isinstance(loaded, PreTrainedModel):
        check_loaded(loaded, tokenizer)
        return _from_loaded(loaded, tokenizer)
    name = str(check_name(model))
    if is_url(name):
        folder, storage = fetch_checkpoint(name, gguf_file)
        return _from_folder(storage.shown, folder, gguf_file, gguf_dtype)
    local = local_path(name)
    if local.is_file() and local.suffix == ".gguf":
        raise SourceError(f"{local} is a GGUF file; give its folder as the model and pass gguf_file={local.name!r}")
    if local.is_file():
        raise SourceError(f"{local} is a file; give the folder that holds the checkpoint, such as {local.parent}")
    if local.is_dir():
        return _from_folder(name, local, gguf_file, gguf_dtype)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"{name} does not exist")
    folder = download_checkpoint(name, revision, token, gguf_file)
    commit = folder.name if COMMIT.fullmatch(folder.name) else revision
    if gguf_file is not None:
        return _from_gguf(name, folder, gguf_file, gguf_dtype, revision=commit, is_hub_id=True)
    refuse_adapter(name, (path.name for path in folder.glob("adapter_*")))
    if not any(folder.glob("*.safetensors")):
        refuse_pickles(name, repository_files(name, commit, token))
    license, details = card_license(folder)
    return Source(
        name,
        folder,
        revision=commit,
        is_hub_id=True,
        license=license,
        license_details=details,
        languages=card_languages(folder),
    )


def source_of_config(raw: Mapping[str, Any], name: str = "tiny") -> Source:
    """Return a source that has a config and no files.

    Args:
        raw: The contents of config.json.
        name: What to call it.
    """
    source = Source(name, Path(name))
    vars(source)["raw_config"] = raw  # instead of reading config.json
    return source


def refuse_adapter(name: str, files: Iterable[str]) -> None:
    """Refuse a PEFT adapter beside the weights: `from_pretrained` puts it on top of them, and a cut would lose it.

    Args:
        name: What the user called the model.
        files: Names of its files.

    Raises:
        SourceError: There is one.
    """
    if "adapter_config.json" in files:
        raise SourceError(
            f"{name} holds adapter_config.json: from_pretrained loads that adapter on top of the weights beside it; "
            "merge it into them (merge_and_unload, then save_pretrained to a new folder), or remove its files"
        )


COMMIT = re.compile(r"[0-9a-f]{40}")
"""What a revision that names one state of a repository looks like."""


def local_path(name: str) -> Path:
    """Return a name as a path.

    Args:
        name: What a user named.

    Raises:
        SourceError: It is too long for a path, and so no Hub id either.
    """
    local = Path(name).expanduser()
    try:
        local.exists()
    except OSError:
        raise SourceError(f"{name[:40]!r}... is too long for the name of a folder or a Hub id") from None
    return local


def temporary_folder() -> tuple[Path, object]:
    """Return a folder that exists as long as the returned object."""

    class Owner:
        pass

    directory = tempfile.TemporaryDirectory(prefix="ishrink-source-", ignore_cleanup_errors=True)
    owner = Owner()
    weakref.finalize(owner, directory.cleanup)
    return Path(directory.name), owner


def _from_folder(name: str, folder: Path, gguf_file: str | None, gguf_dtype: torch.dtype) -> Source:
    if gguf_file is not None:
        return _from_gguf(name, folder, gguf_file, gguf_dtype, revision=None, is_hub_id=False)
    refuse_adapter(name, (path.name for path in folder.glob("adapter_*")))
    if not (folder / "config.json").is_file():
        raise no_config(name, (path.name for path in folder.iterdir()))
    license, details = card_license(folder)
    return Source(name, folder, license=license, license_details=details, languages=card_languages(folder))


def _from_gguf(
    name: str, folder: Path, gguf_file: str, dtype: torch.dtype, *, revision: str | None, is_hub_id: bool
) -> Source:
    converted, owner = temporary_folder()
    lost = convert_gguf(folder, gguf_file, dtype, converted)
    license, details, languages = gguf_metadata(folder / gguf_file)
    if not license:
        license, details = card_license(folder)
    source = Source(
        name,
        converted,
        revision=revision,
        is_hub_id=is_hub_id,
        license=license,
        license_details=details,
        gguf_file=gguf_file,
        read_from=folder / gguf_file,
        languages=languages or card_languages(folder),
        notes=(f"read from {gguf_file} and dequantised to {dtype_name(dtype)}", *filter(None, [lost])),
        _owner=owner,
    )
    parse_config(source.raw_config)
    return source


def _from_loaded(model: Any, tokenizer: Any) -> Source:
    folder, owner = temporary_folder()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lost = add_older_keys(folder, tokenizer)
    name = model.config._name_or_path or type(model).__name__
    notes = ("saved from a model in memory", *filter(None, [lost]))
    return Source(name, folder, notes=notes, in_memory=True, _owner=owner)
