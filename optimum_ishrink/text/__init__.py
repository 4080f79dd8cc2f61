"""Text sources, windows of tokens, and text that a model samples itself."""
