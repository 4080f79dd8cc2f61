"""Tiny random models of several parts: a vision tower, a projector and a text decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.helpers.tiny import SMALL, tiny_tokenizer

IMAGE, VIDEO, START, END = 299, 298, 297, 296
SIDE = 16
"""Pixels of a side of a tiny image."""

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
_PIXTRAL = {**_TOWER, "model_type": "pixtral", "head_dim": 8}
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


COMPOSITES: dict[str, list[dict[str, Any]]] = {
    "aya_vision": [{"text": {"model_type": "cohere2", "sliding_window": 3}, "vision": _SIGLIP}],
    "cohere2_vision": [{"text": {"model_type": "cohere2", "sliding_window": 3}, "vision": _SIGLIP}],
    "gemma3": [
        {
            "text": {"query_pre_attn_scalar": 8, "sliding_window": 3},
            "vision": _SIGLIP,
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": END,
            "mm_tokens_per_image": 4,
        }
    ],
    "got_ocr2": [],
    "idefics3": [{"text": {"model_type": "llama"}, "vision": _TOWER, "image_token_id": IMAGE}],
    "internvl": [],
    "llava": [
        {"text": {"model_type": "llama"}, "vision": _CLIP, "image_token_index": IMAGE},
        {
            "text": {"model_type": "mistral", "tie_word_embeddings": True},
            "vision": _PIXTRAL,
            "image_token_index": IMAGE,
            "tie_word_embeddings": True,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
    ],
    "llava_next": [{"text": {"model_type": "mistral"}, "vision": _CLIP, "image_token_index": IMAGE, **_GRID}],
    "llava_onevision": [
        {
            "text": {"model_type": "qwen2"},
            "vision": _SIGLIP,
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
            **_GRID,
        }
    ],
    "mistral3": [{"text": {"model_type": "mistral"}, "vision": _PIXTRAL, "image_token_index": IMAGE}],
    "ovis2": [],
    "paligemma": [
        {
            "text": {"model_type": "gemma"},
            "vision": _SIGLIP,
            "image_token_index": IMAGE,
            "vocab_size": 300,
            "projection_dim": 32,
            "hidden_size": 32,
        }
    ],
    "qwen2_5_vl": [{"text": {**_rope(1, 1, 0), "head_dim": None}, "vision": _QWEN, **_QWEN_IDS}],
    "qwen2_vl": [{"text": {**_rope(1, 1, 0), "head_dim": None}, "vision": _QWEN, **_QWEN_IDS, "tie_word_embeddings": True}],
    "qwen3_vl": [{"text": _rope(2, 1, 1), "vision": _QWEN, **_QWEN_IDS}],
    "smolvlm": [{"text": {"model_type": "llama"}, "vision": _TOWER, "image_token_id": IMAGE, "tie_word_embeddings": True}],
    "vipllava": [
        {
            "text": {"model_type": "llama"},
            "vision": _CLIP,
            "image_token_index": IMAGE,
            "vision_feature_layers": [-1, -2],
        }
    ],
}


def composite_config(model_type: str, variant: int = 0, **text: Any) -> Any:
    """The config of a tiny model of several parts; keywords change its decoder."""
    values = dict(COMPOSITES[model_type][variant])
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
