"""Text sources, windows of tokens, calibration text, and text sampled from a model."""
