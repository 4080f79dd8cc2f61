"""Talking with a model, beside its base: prompts, streamed answers with their figures, and what differs."""
