"""A run: its stages in their order, and the runner."""
