"""Where weights come from: a Hub id, a folder of safetensors, a GGUF file, or a model in memory.

Whatever it was, the rest of the package sees a folder with config.json, tokenizer files and safetensors.
"""

from __future__ import annotations

import re
import tempfile
import weakref
from collections.abc import Collection, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import HfApi, metadata_load, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..architectures.model_class import bind_config, parse_config
from ..architectures.spec import Binding, axis_length, is_ignored
from ..core.json_files import read_json
from ..core.progress import progress_bar
from ..errors import SourceError
from .tensors import Scratch, TensorInfo, read_index, read_tensor, refuse_pickles

_WANTED = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.tiktoken",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
]
_UNWANTED = ["original/*", "*/*.safetensors", "consolidated*"]
"""Second copies of the weights, in the formats of Meta and Mistral."""

_HEADS = ("lm_head.weight", "embed_out.weight")
"""What the models call the head that may be tied to the embedding."""

_COMPARED = 64 * 1024 * 1024
"""Bytes of a tied head that are compared at a time."""


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    Args:
        name: What the user called it; it stands in cards and reports.
        folder: Where config.json and the safetensors are.
        revision: Commit of a Hub repository, or None.
        is_hub_id: Whether `name` can be looked up on the Hub.
        license: The licence from the source's card, if it has one.
        notes: What was done to make it a clean checkpoint, in words for the card.
        license_details: `license_name` and `license_link` of the source's card, as far as it has them.
        gguf_file: Name of the GGUF file that it was read from, or None.
        languages: The languages that the source's card names, as the Hub writes them.
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
    _owner: object = field(default=None, repr=False, compare=False)

    @property
    def display_name(self) -> str:
        """Its name for cards and reports: a Hub id or a folder's own name, never a whole path."""
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
        """The config as its class reads it."""
        return self._bound[0]

    @property
    def binding(self) -> Binding:
        """The architecture's description tied to this model."""
        return self._bound[1]

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every parameter in the files, checked against the model class; buffers and tied copies are left out.

        The names are those that the model class gives them, also where the files lack the base model's prefix.

        Raises:
            SourceError: The files are corrupt, or they do not hold what the config's model class expects.
        """
        stored = read_index(self.folder)
        expected = self.binding.tensors
        names = stored_names(expected, stored)
        missing = sorted(name for name in expected if names[name] not in stored)
        if missing:
            raise SourceError(f"{self.name} lacks {len(missing)} tensors that its config expects: {_first(missing)}")
        tied = set(_HEADS) - expected.keys() if self.config.tie_word_embeddings else set()
        description = self.binding.description
        prefixes = {"", *(name.removesuffix(found) for name, found in names.items())}
        strangers = sorted(
            name
            for name in stored.keys() - set(names.values()) - tied
            if not any(is_ignored(description, prefix + name) for prefix in prefixes)
        )
        if strangers:
            raise SourceError(
                f"{self.name} holds {len(strangers)} tensors that its config does not expect: {_first(strangers)}"
            )
        sizes = self.binding.sizes
        for name, bound in expected.items():
            shape = tuple(axis_length(axis, sizes) for axis in bound.axes)
            found = stored[names[name]].shape
            if found != shape:
                raise SourceError(f"{self.name} holds {name} as {list(found)}; its config expects {list(shape)}")
        tensors = {name: stored[names[name]] for name in expected}
        for head in sorted(tied & stored.keys()):
            self._check_tied(head, stored[head], tensors)
        return tensors

    def _check_tied(self, head: str, stored: TensorInfo, tensors: Mapping[str, TensorInfo]) -> None:
        """Refuse a stored head that is not the embedding which the config ties it to.

        transformers does not tie the two then, so that the model which runs is another one than the config says.
        """
        outer = (bound for bound in self.binding.tensors.values() if bound.layer is None and len(bound.axes) == 2)
        embedding = next((bound.name for bound in outer if bound.counts("vocab")), None)
        if embedding is not None and not _same_bytes(stored, tensors[embedding]):
            raise SourceError(
                f"{self.name} holds {head} with other values than {embedding}, but its config ties them: "
                'set "tie_word_embeddings": false in its config.json to keep both, or remove the one that is stale'
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(info.nbytes for info in self.tensors.values())

    def load_tokenizer(self) -> Any:
        """Load the tokenizer; a folder without one is a `SourceError`."""
        return load_tokenizer(self.folder)

    def load_model(self, dtype: torch.dtype, device: torch.device) -> Any:
        """Load the model for computing; the files keep their own dtype."""
        return load_model(self.folder, dtype, device)


def stored_names(expected: Collection[str], stored: Collection[str]) -> dict[str, str]:
    """Return under which name each expected tensor is stored.

    Files saved from a base model, such as GPT-2's own, lack its prefix: `h.0.ln_1.weight` for
    `transformer.h.0.ln_1.weight`. transformers loads them as if they had it.

    Args:
        expected: Names that the model class gives.
        stored: Names in the files.

    Returns:
        Expected name to stored name; a name that is not stored either way stands for itself.
    """
    names = {}
    for name in expected:
        short = name.partition(".")[2]
        names[name] = short if name not in stored and short in stored and short not in expected else name
    return names


def _same_bytes(first: TensorInfo, second: TensorInfo) -> bool:
    """Whether two stored tensors are equal, read piece by piece: a head is one of the largest tensors."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False

    def piece(info: TensorInfo, offset: int, scratch: Scratch) -> torch.Tensor:
        start, end = info.start + offset, min(info.start + offset + _COMPARED, info.end)
        return read_tensor(replace(info, dtype="U8", shape=(end - start,), start=start, end=end), scratch)

    one, other = Scratch(), Scratch()
    offsets = range(0, first.nbytes, _COMPARED)
    return all(torch.equal(piece(first, offset, one), piece(second, offset, other)) for offset in offsets)


def _first(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def load_tokenizer(folder: Path) -> Any:
    """Load a checkpoint folder's tokenizer.

    Raises:
        SourceError: The folder holds none that can be used.
    """
    try:
        # Unless it is told, the loader asks on the terminal whether it may run the folder's own code.
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"{folder} holds no usable tokenizer ({reason})") from None


def load_model(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a checkpoint folder as plain `AutoModelForCausalLM`, and make sure that it was all there.

    Args:
        folder: The checkpoint.
        dtype: Compute dtype.
        device: Where it goes.

    Raises:
        SourceError: Something in the files does not fit the model class.
    """
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            raise SourceError(f"{folder} does not load cleanly: {problem} {_first(sorted(map(str, info[problem])))}")
    return model.to(device).eval()


def open_source(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    gguf_file: str | None = None,
    gguf_dtype: torch.dtype = torch.bfloat16,
) -> Source:
    """Open a source.

    Args:
        model: Hub id, folder, or a loaded model.
        tokenizer: The loaded model's tokenizer.
        revision: Branch, tag or commit of a Hub repository.
        token: Hub token; never stored.
        gguf_file: Name of a GGUF file in the folder or repository: it is read and becomes clean safetensors.
        gguf_dtype: Dtype of those safetensors. bfloat16 by default, the dtype that compact models are published in.

    Raises:
        SourceError: There is no usable checkpoint.
    """
    if isinstance(model, PreTrainedModel):
        return _from_loaded(model, tokenizer)
    name = str(model)
    local = Path(name).expanduser()
    if local.is_file() and local.suffix == ".gguf":
        raise SourceError(f"{local} is a GGUF file; give its folder as the model and pass gguf_file={local.name!r}")
    if local.is_file():
        raise SourceError(f"{local} is a file; give the folder that holds the checkpoint, such as {local.parent}")
    if local.is_dir():
        if gguf_file is not None:
            return _from_gguf(name, local, gguf_file, gguf_dtype, revision=None, is_hub_id=False)
        if not (local / "config.json").is_file():
            ggufs = sorted(path.name for path in local.glob("*.gguf"))
            hint = f"; it holds {ggufs[0]}: pass it as gguf_file" if ggufs else ""
            raise SourceError(f"{local} holds no config.json{hint}")
        license, details = _license(local)
        return Source(name, local, license=license, license_details=details, languages=_languages(local))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"{name} does not exist")
    folder = _download(name, revision, token, gguf_file)
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    if gguf_file is not None:
        return _from_gguf(name, folder, gguf_file, gguf_dtype, revision=commit, is_hub_id=True)
    if not any(folder.glob("*.safetensors")):
        refuse_pickles(name, _repository_files(name, commit, token))
    license, details = _license(folder)
    return Source(
        name,
        folder,
        revision=commit,
        is_hub_id=True,
        license=license,
        license_details=details,
        languages=_languages(folder),
    )


def _download(repo_id: str, revision: str | None, token: str | bool | None, gguf_file: str | None) -> Path:
    wanted = [*_WANTED, "README.md", *([gguf_file] if gguf_file else [])]
    try:
        path = snapshot_download(
            repo_id, revision=revision, token=token, allow_patterns=wanted, ignore_patterns=_UNWANTED
        )
        return Path(path)
    except GatedRepoError:
        reason = "it is gated; accept its terms on the Hub and log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "neither a local folder nor a Hub repository that you can read"
    except RevisionNotFoundError:
        reason = f"the repository has no revision {revision!r}"
    except HFValidationError:
        reason = "neither a local folder nor a valid Hub id"
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = "not a local folder, not in the cache, and the Hub cannot be reached"
        if error.errno is not None:  # the system's own word, such as that of a full disk
            reason = " ".join(str(error).split())
    except Exception as error:  # a dropped connection raises the HTTP library's own type
        if "http" not in type(error).__module__:
            raise
        text = " ".join(str(error).split())[:200] or type(error).__name__
        reason = f"the connection to the Hub broke ({text}); try again, what arrived is kept"
    raise SourceError(f"cannot open model {repo_id!r}: {reason}")


def _repository_files(repo_id: str, revision: str | None, token: str | bool | None) -> list[str]:
    """Return the names of a Hub repository's files; none when they cannot be had, because they are only for a hint."""
    try:
        return HfApi(token=token).list_repo_files(repo_id, revision=revision)
    except Exception:
        return []


def _card_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata of the folder's card; empty where there is no card, or none that can be read."""
    try:
        return metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _languages(folder: Path) -> tuple[str, ...]:
    """Return the languages that the folder's card names."""
    found = _card_metadata(folder).get("language")
    names = found if isinstance(found, list) else [] if found is None else [found]
    # YAML 1.1 reads an unquoted `no`, Norwegian, as false.
    return tuple("no" if name is False else str(name) for name in names if name is not None and name != "")


def _license(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the licence that the folder's card names, with its name and link where it is none of the Hub's own."""
    data = _card_metadata(folder)
    found = data.get("license")
    if isinstance(found, list):
        found = found[0] if found else None
    details = {key: str(data[key]) for key in ("license_name", "license_link") if data.get(key)}
    return (str(found) if found else None), details


def _temporary_folder() -> tuple[Path, object]:
    """Return a folder that lives as long as the returned object."""

    class Owner:
        pass

    directory = tempfile.TemporaryDirectory(prefix="ishrink-source-", ignore_cleanup_errors=True)
    owner = Owner()
    weakref.finalize(owner, directory.cleanup)
    return Path(directory.name), owner


def _from_gguf(
    name: str, folder: Path, gguf_file: str, dtype: torch.dtype, *, revision: str | None, is_hub_id: bool
) -> Source:
    if not (folder / gguf_file).is_file():
        near = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
        raise SourceError(f"{folder} holds no {gguf_file!r}; GGUF files there: {near}")
    clean, owner = _temporary_folder()
    try:
        # The reader draws a bar of its own that cannot be turned off; errors are raised, so nothing else is lost.
        with progress_bar(f"reading {gguf_file}", 1) as advance, redirect_stderr(StringIO()):
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
            advance(1)
    except Exception as error:  # the reader raises many types for a file that is not what it says
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"cannot read {folder / gguf_file} as GGUF ({reason})") from None
    _forget_quantizer(model)
    # The reader takes the name of the training run from the file; a path or a name here would only mislead.
    model.config._name_or_path = ""
    model.save_pretrained(clean)
    tokenizer.save_pretrained(clean)
    license, details = _license(folder)
    own_license, own_details = _gguf_license(folder / gguf_file)
    source = Source(
        name,
        clean,
        revision=revision,
        is_hub_id=is_hub_id,
        license=own_license or license,
        license_details=own_details if own_license else details,
        gguf_file=gguf_file,
        languages=_gguf_languages(folder / gguf_file) or _languages(folder),
        notes=(f"read from {gguf_file} and dequantised to {str(dtype).removeprefix('torch.')}",),
        _owner=owner,
    )
    parse_config(source.raw_config)
    return source


def _forget_quantizer(model: Any) -> None:
    """Remove what a GGUF read leaves behind, so that the model saves as the plain one that it is."""
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(attribute, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _gguf_license(path: Path) -> tuple[str | None, dict[str, str]]:
    """Return the licence that a GGUF file names, with its name and link."""
    from gguf import GGUFReader

    entries = GGUFReader(path).fields
    found = {
        key: str(entry.contents())
        for key in ("license", "license_name", "license_link")
        if (entry := entries.get("general." + key.replace("_", "."))) is not None
    }
    return found.pop("license", None), found


def _gguf_languages(path: Path) -> tuple[str, ...]:
    """Return the languages that a GGUF file names."""
    from gguf import GGUFReader

    entry = GGUFReader(path).fields.get("general.languages")
    found = [] if entry is None else entry.contents()
    return tuple(map(str, found if isinstance(found, list) else [found]))


def _from_loaded(model: Any, tokenizer: Any) -> Source:
    if tokenizer is None:
        raise SourceError("a loaded model needs its tokenizer: from_pretrained(model, tokenizer=tokenizer)")
    folder, owner = _temporary_folder()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name = model.config._name_or_path or type(model).__name__
    return Source(name, folder, notes=("saved from a model in memory",), _owner=owner)
