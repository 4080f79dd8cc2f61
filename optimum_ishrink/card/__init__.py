"""The model card: its text, metadata and figures."""
