"""Names of the files that a tokenizer and its chat templates, and the processors of other inputs, can be in."""

from __future__ import annotations

TOKENIZER_PATTERNS = (
    "tokenizer*",
    "*tekken*.json",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.model.v*",
    "*.tiktoken",
    "*.tokenizer",
    "byte_maps.json",
    "emoji.json",
    "encoder.json",
    "entity_vocab.json",
    "dict.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
"""What the tokenizer classes of transformers name as their vocabularies, the formats of Mistral and tiktoken, and chat
templates in each of their places: in the tokenizer's config, in a file of their own, or in a folder of several."""

PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
)
"""What makes the inputs of a model's other parts: images, videos and sound."""
