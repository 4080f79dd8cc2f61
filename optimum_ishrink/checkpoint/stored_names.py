"""The names under which files hold a model's tensors, and those by which the model class knows them.

The files of models of several parts follow one of several conventions, by the version of transformers that wrote them.
Their tensors are read by the names that they have in memory, and written again under those that they had.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from ..architectures.composite import is_composite
from ..architectures.model_class import meta_model
from .tensors import TensorInfo, read_index


def by_parameter(stored: Mapping[str, TensorInfo], config: Any) -> dict[str, TensorInfo]:
    """Return stored tensors by the names of `expected_tensors`, each with the name that its file has for it.

    transformers' own renaming is asked, so that they are what `from_pretrained` makes of them. Tensors that the class
    leaves out when it is loaded, such as heads that only draft tokens, are left out.

    Args:
        stored: What `read_index` found.
        config: The `PreTrainedConfig` of the whole model.
    """
    if not is_composite(config):
        return dict(stored)
    model = meta_model(config)
    conversions = get_model_conversion_mapping(model)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    state = model.state_dict()
    unread = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["(?!)"]))
    found = {}
    for stored_as, info in stored.items():
        name, _ = rename_source_key(stored_as, renamings, converters, model.base_model_prefix, state)
        if name in state or not unread.search(name):
            found[name] = replace(info, stored_as=stored_as)
    return found


def read_by_parameter(folder: Path, config: Any) -> dict[str, TensorInfo]:
    """Return every tensor of a checkpoint folder by the names of `expected_tensors`.

    Args:
        folder: The checkpoint.
        config: The `PreTrainedConfig` of the whole model.

    Raises:
        SourceError: There are no safetensors, or they are damaged.
    """
    return by_parameter(read_index(folder), config)
