"""Files of rows with images, and tiny models of several parts with processors that read them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaProcessor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from tests.helpers.tiny import tiny_tokenizer
from tests.helpers.tiny_composites import SIDE, composite_config, save_composite

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
)
_TOKENS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]


def save_with_processor(folder: Path, model_type: str = "llava", **text: Any) -> Path:
    """Save a tiny model with a processor that reads images of any size, and return the folder."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": _TOKENS})
    config = composite_config(model_type, **text)
    setattr(
        config,
        "image_token_index" if hasattr(config, "image_token_index") else "image_token_id",
        tokenizer.convert_tokens_to_ids("<image>"),
    )
    save_composite(folder, config)
    if model_type == "llava":
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        strategy = config.vision_feature_select_strategy
        processor = LlavaProcessor(images, tokenizer, 8, strategy, TEMPLATE, num_additional_image_tokens=1)
    else:
        images = Idefics3ImageProcessorPil(
            size={"longest_edge": SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=False
        )
        processor = Idefics3Processor(images, tokenizer, image_seq_len=1, chat_template=TEMPLATE)
    processor.save_pretrained(folder)
    return folder


def write_image(path: Path, seed: int = 0) -> Path:
    """Write a small image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE + 4, SIDE + 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    """Write rows to a file."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def image_rows(folder: Path, count: int = 12) -> Path:
    """Write rows with images, every second as a conversation, and return their file."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        write_image(folder / f"{number}.png", number)
        said = f"a picture with {number} of {count} boats"
        if number % 2:
            content = [{"type": "image"}, {"type": "text", "text": said}]
            rows.append({"image": f"{number}.png", "messages": [{"role": "user", "content": content}]})
        else:
            rows.append({"image": f"{number}.png", "text": said})
    return write_rows(folder, rows)
