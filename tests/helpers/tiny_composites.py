"""Tiny random models of several parts: a vision tower, a projector and a text decoder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from optimum_ishrink.architectures.composite import composites
from optimum_ishrink.errors import ArchitectureError
from tests.helpers.tiny import SMALL, VOCAB, tiny_tokenizer

IMAGE, VIDEO, START, END = 299, 298, 297, 296
SIDE = 16
"""Pixels of a side of a tiny image."""

TOWER_OF_TIMM = ("gemma3n",)
"""Models whose vision tower is one of timm, which is not among this project's own dependencies: these cases are run
where timm and torchvision are installed."""

_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "projection_dim": 16,
}
_CLIP = {**_TOWER, "model_type": "clip_vision_model"}
_SIGLIP = {**_TOWER, "model_type": "siglip_vision_model", "vision_use_head": False}
_PIXTRAL = {**_TOWER, "model_type": "pixtral", "head_dim": 8, "image_size": 2 * SIDE}
_QWEN = {
    "depth": 2,
    "hidden_size": 16,
    "embed_dim": 16,
    "out_hidden_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "intermediate_size": 24,
    "num_position_embeddings": 16,
    "fullatt_block_indexes": [1],
    "window_size": 16,
    "deepstack_visual_indexes": [0, 1],
}
_QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
_GRID = {"image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]}


def _rope(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}}


def _image(**inputs: Any) -> dict[str, Any]:
    return {"image": inputs}


_PIXELS = _image(pixel_values=(1, 3, SIDE, SIDE))
_TILES = _image(pixel_values=(1, 3, 3, SIDE, SIDE), image_sizes=[[SIDE, 2 * SIDE]])
_SIZED = _image(pixel_values=(1, 3, 2 * SIDE, 2 * SIDE), image_sizes=[[2 * SIDE, 2 * SIDE]])
_PATCHES = _image(pixel_values=(16, 3 * 2 * 4 * 4), image_grid_thw=[[1, 4, 4]])
_LIST = _image(pixel_values=(1, 1, 3, SIDE, SIDE))

COMPOSITES: dict[str, list[dict[str, Any]]] = {
    "aya_vision": [
        {
            "text": {"model_type": "cohere2", "sliding_window": 3},
            "vision": _SIGLIP,
            "image_token_index": IMAGE,
            **_PIXELS,
        }
    ],
    "cohere2_vision": [
        {"text": {"model_type": "cohere2", "sliding_window": 3}, "vision": _SIGLIP, "image_token_id": IMAGE, **_PIXELS}
    ],
    "gemma3": [
        {
            "text": {"query_pre_attn_scalar": 8, "sliding_window": 3},
            "vision": _SIGLIP,
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": END,
            "mm_tokens_per_image": 4,
            **_PIXELS,
        }
    ],
    "gemma3n": [
        {
            "text": {
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
                "hidden_size_per_layer_input": 4,
                "vocab_size_per_layer_input": 290,
                "sliding_window": 3,
                "laurel_rank": 6,
                "altup_num_inputs": 3,
                "num_kv_shared_layers": 2,
            },
            "vision": {"architecture": "resnet18", "hidden_size": 512, "vocab_size": 4, "vocab_offset": 290},
            "audio_config": {
                "hidden_size": 16,
                "conf_num_attention_heads": 2,
                "conf_num_hidden_layers": 1,
                "input_feat_size": 16,
                "vocab_size": 4,
                "vocab_offset": 296,
            },
            "image_token_id": 292,
            "audio_token_id": 297,
            "vision_soft_tokens_per_image": 1,
            **_PIXELS,
        }
    ],
    "gemma4": [
        {
            "text": {"sliding_window": 3, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
            "vision": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": 4,
            },
            "audio_config": None,
            "image_token_id": IMAGE,
            **_image(pixel_values=(1, 9, 48), image_position_ids=[[[x, y] for y in range(3) for x in range(3)]]),
        }
    ],
    "got_ocr2": [
        {
            "text": {"model_type": "qwen2"},
            "vision": {
                "hidden_size": 16,
                "output_channels": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 16,
                "window_size": 2,
                "global_attn_indexes": [1],
                "mlp_dim": 24,
            },
            "image_token_index": IMAGE,
            **_image(pixel_values=(1, 3, 64, 64)),
        }
    ],
    "idefics3": [{"text": {"model_type": "llama"}, "vision": _TOWER, "image_token_id": IMAGE, **_LIST}],
    "internvl": [
        {
            "text": {"model_type": "qwen2"},
            "vision": {**_TOWER, "image_size": [SIDE, SIDE], "patch_size": [8, 8]},
            "image_token_id": IMAGE,
            **_PIXELS,
        },
        {
            "text": {"model_type": "qwen3"},
            "vision": {**_TOWER, "image_size": [SIDE, SIDE], "patch_size": [8, 8]},
            "image_token_id": IMAGE,
            "tie_word_embeddings": False,
            **_PIXELS,
        },
    ],
    "lfm2_vl": [
        {
            "text": {
                "model_type": "lfm2",
                "layer_types": ["conv", "full_attention", "conv", "full_attention"],
                "block_auto_adjust_ff_dim": False,
            },
            "vision": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 4,
                "num_patches": 16,
            },
            "image_token_id": IMAGE,
            "projector_hidden_size": 16,
            **_image(pixel_values=(1, 16, 48), spatial_shapes=[[4, 4]], pixel_attention_mask=[[1] * 16]),
        }
    ],
    "llava": [
        {"text": {"model_type": "llama"}, "vision": _CLIP, "image_token_index": IMAGE, **_PIXELS},
        {
            "text": {"model_type": "mistral", "tie_word_embeddings": True},
            "vision": _PIXTRAL,
            "image_token_index": IMAGE,
            "tie_word_embeddings": True,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            **_SIZED,
        },
    ],
    "llava_next": [
        {"text": {"model_type": "mistral"}, "vision": _CLIP, "image_token_index": IMAGE, **_GRID, **_TILES}
    ],
    "llava_onevision": [
        {
            "text": {"model_type": "qwen2"},
            "vision": _SIGLIP,
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
            **_GRID,
            **_TILES,
        }
    ],
    "mistral3": [
        {
            "text": {"model_type": "mistral"},
            "vision": _PIXTRAL,
            "image_token_index": IMAGE,
            **_SIZED,
        }
    ],
    "ovis2": [
        {
            "text": {"model_type": "qwen2"},
            "vision": {**_TOWER, "vocab_size": 20, "hidden_stride": 1, "num_visual_indicator_tokens": 2},
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": [START, END],
            "vocab_size": VOCAB,
            "hidden_size": 32,
            **_PIXELS,
        }
    ],
    "paligemma": [
        {
            "text": {"model_type": "gemma"},
            "vision": _SIGLIP,
            "image_token_index": IMAGE,
            "vocab_size": VOCAB,
            "projection_dim": 32,
            "hidden_size": 32,
            **_PIXELS,
        }
    ],
    "qwen2_5_vl": [{"text": {**_rope(1, 1, 0), "head_dim": None}, "vision": _QWEN, **_QWEN_IDS, **_PATCHES}],
    "qwen2_vl": [
        {
            "text": {**_rope(1, 1, 0), "head_dim": None},
            "vision": {**_QWEN, "hidden_size": 32},
            **_QWEN_IDS,
            "tie_word_embeddings": True,
            **_PATCHES,
        }
    ],
    "qwen3_5": [
        {
            "text": {
                "layer_types": ["linear_attention", "full_attention"] * 2,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
            "vision": _QWEN,
            **_QWEN_IDS,
            **_PATCHES,
        }
    ],
    "qwen3_vl": [{"text": _rope(2, 1, 1), "vision": _QWEN, **_QWEN_IDS, **_PATCHES}],
    "smolvlm": [
        {
            "text": {"model_type": "llama"},
            "vision": _TOWER,
            "image_token_id": IMAGE,
            "tie_word_embeddings": True,
            **_LIST,
        }
    ],
    "vipllava": [
        {
            "text": {"model_type": "llama"},
            "vision": _CLIP,
            "image_token_index": IMAGE,
            "vision_feature_layers": [-1, -2],
            **_PIXELS,
        }
    ],
}


def is_described(model_type: str, variant: int) -> bool:
    """Whether the architecture of a model's text decoder has a description."""
    text = composite_config(model_type, variant).get_text_config().model_type
    try:
        composites()[model_type].describe_text(text)
    except ArchitectureError:
        return False
    return True


def composite_config(model_type: str, variant: int = 0, **text: Any) -> Any:
    """The config of a tiny model of several parts; keywords change its decoder."""
    values = {key: value for key, value in COMPOSITES[model_type][variant].items() if key != "image"}
    inner = {**SMALL, **values.pop("text"), **text}
    inner = {key: value for key, value in inner.items() if value is not None}
    return AutoConfig.for_model(model_type, text_config=inner, vision_config=dict(values.pop("vision")), **values)


def composite_model(config: Any, seed: int = 0) -> Any:
    """A random model whose every tensor is far from its initial value."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_composite(folder: Path, config: Any, seed: int = 0) -> Path:
    """Save a tiny model of several parts with its tokenizer, and return the folder."""
    composite_model(config, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def image_question(model: Any, variant: int = 0, seed: int = 3) -> dict[str, torch.Tensor]:
    """Random pixels and a text with as many placeholders as the model makes features of them."""
    shapes = dict(COMPOSITES[model.config.model_type][variant]["image"])
    dtype = model.dtype
    pixels = torch.randn(*shapes.pop("pixel_values"), generator=torch.Generator().manual_seed(seed))
    inputs = {"pixel_values": pixels.to(dtype), **{name: torch.tensor(value) for name, value in shapes.items()}}
    with torch.no_grad():
        features = model.get_image_features(**inputs)
    count = _numel(getattr(features, "pooler_output", features)) // SMALL["hidden_size"]
    ids = torch.tensor([[5, 6, *[model.config.image_token_id] * count, 9, 10, 11, 12]])
    kinds = (ids == model.config.image_token_id).long()
    extra = {"gemma3": "token_type_ids", "paligemma": "token_type_ids"}.get(model.config.model_type)
    if model.config.model_type.startswith(("qwen", "gemma4")):
        extra = "mm_token_type_ids"
    if model.config.model_type == "paligemma":
        kinds = 1 - kinds
    return {"input_ids": ids, **inputs, **({extra: kinds} if extra else {})}


def _numel(features: Any) -> int:
    return features.numel() if isinstance(features, torch.Tensor) else sum(map(_numel, features))


CASES = [
    (name, variant)
    for name, variants in COMPOSITES.items()
    for variant in range(len(variants))
    if is_described(name, variant) and (name not in TOWER_OF_TIMM or find_spec("timm"))
]
"""Every tiny model whose decoder is described."""
