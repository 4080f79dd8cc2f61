"""What llama.cpp calls the tensors of a checkpoint."""

from __future__ import annotations

from ..architectures.binding import Binding
from ..errors import SourceError


def gguf_names(binding: Binding, architecture: str) -> dict[str, str]:
    """Return the name that llama.cpp has for each parameter of a checkpoint.

    Parameters that its converter splits, merges or leaves out have none.

    Args:
        binding: The model.
        architecture: Its architecture, as llama.cpp names it.

    Raises:
        SourceError: The installed `gguf` package does not know the architecture.
    """
    import gguf

    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise SourceError(f"the installed gguf package does not know the architecture {architecture}")
    names = gguf.get_tensor_name_map(known[architecture], binding.sizes["layers"])
    found = {}
    for name in binding.tensors:
        translated = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if translated is not None:
            found[name] = translated
    return found
