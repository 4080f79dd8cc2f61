"""Where weights come from: a Hub id, a folder of safetensors, a GGUF file, or a model in memory.

Whatever it was, the rest of the package sees a folder with config.json, tokenizer files and safetensors.
"""

from __future__ import annotations

import re
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .architectures import Binding, is_ignored
from .architectures.model_class import bind_config, parse_config
from .architectures.spec import axis_length
from .artifacts import read_json
from .errors import SourceError
from .progress import progress_bar
from .tensor_files import TensorInfo, read_index

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
    """

    name: str
    folder: Path
    revision: str | None = None
    is_hub_id: bool = False
    license: str | None = None
    notes: tuple[str, ...] = ()
    _owner: object = field(default=None, repr=False, compare=False)

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

        Raises:
            SourceError: The files are corrupt, or they do not hold what the config's model class expects.
        """
        stored = read_index(self.folder)
        expected = self.binding.tensors
        missing = sorted(expected.keys() - stored.keys())
        if missing:
            raise SourceError(f"{self.name} lacks {len(missing)} tensors that its config expects: {_first(missing)}")
        tied = {"lm_head.weight"} if self.config.tie_word_embeddings else set()
        description = self.binding.description
        strangers = sorted(
            name for name in stored.keys() - expected.keys() - tied if not is_ignored(description, name)
        )
        if strangers:
            raise SourceError(
                f"{self.name} holds {len(strangers)} tensors that its config does not expect: {_first(strangers)}"
            )
        sizes = self.binding.sizes
        for name, bound in expected.items():
            shape = tuple(axis_length(axis, sizes) for axis in bound.axes)
            if stored[name].shape != shape:
                raise SourceError(
                    f"{self.name} holds {name} as {list(stored[name].shape)}; its config expects {list(shape)}"
                )
        return {name: stored[name] for name in expected}

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


def _first(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def load_tokenizer(folder: Path) -> Any:
    """Load a checkpoint folder's tokenizer.

    Raises:
        SourceError: The folder holds none that can be used.
    """
    try:
        return AutoTokenizer.from_pretrained(folder)
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
    if local.is_dir():
        if gguf_file is not None:
            return _from_gguf(name, local, gguf_file, gguf_dtype, revision=None, is_hub_id=False)
        if not (local / "config.json").is_file():
            ggufs = sorted(path.name for path in local.glob("*.gguf"))
            hint = f"; it holds {ggufs[0]}: pass it as gguf_file" if ggufs else ""
            raise SourceError(f"{local} holds no config.json{hint}")
        return Source(name, local, license=_license(local))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SourceError(f"{name} does not exist")
    folder = _download(name, revision, token, gguf_file)
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision
    if gguf_file is not None:
        return _from_gguf(name, folder, gguf_file, gguf_dtype, revision=commit, is_hub_id=True)
    return Source(name, folder, revision=commit, is_hub_id=True, license=_license(folder))


def _download(repo_id: str, revision: str | None, token: str | bool | None, gguf_file: str | None) -> Path:
    wanted = [*_WANTED, "README.md", *([gguf_file] if gguf_file else [])]
    # Meta's repositories hold a second copy of the weights in original/.
    try:
        path = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=wanted,
            ignore_patterns=["original/*", "*/*.safetensors"],
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
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
        reason = "not a local folder, not in the cache, and the Hub cannot be reached"
    raise SourceError(f"cannot open model {repo_id!r}: {reason}")


def _license(folder: Path) -> str | None:
    """Return the licence that the folder's card names."""
    card = folder / "README.md"
    if card.is_file():
        found = re.search(r"\A---\n(?:.*\n)*?license:\s*[\"']?([\w.\-]+)", card.read_text(encoding="utf-8"))
        return found[1] if found else None
    return None


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
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
            advance(1)
    except Exception as error:  # the reader raises many types for a file that is not what it says
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"cannot read {folder / gguf_file} as GGUF ({reason})") from None
    _forget_quantizer(model)
    # The reader takes the name of the training run from the file; a path or a name here would only mislead.
    model.config._name_or_path = ""
    model.save_pretrained(clean)
    tokenizer.save_pretrained(clean)
    source = Source(
        name,
        clean,
        revision=revision,
        is_hub_id=is_hub_id,
        license=_gguf_license(folder / gguf_file),
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


def _gguf_license(path: Path) -> str | None:
    from gguf import GGUFReader

    entry = GGUFReader(path).fields.get("general.license")
    return str(entry.contents()) if entry is not None else None


def _from_loaded(model: Any, tokenizer: Any) -> Source:
    if tokenizer is None:
        raise SourceError("a loaded model needs its tokenizer: from_pretrained(model, tokenizer=tokenizer)")
    folder, owner = _temporary_folder()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name = model.config._name_or_path or type(model).__name__
    return Source(name, folder, notes=("saved from a model in memory",), _owner=owner)
