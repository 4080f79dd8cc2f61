"""Choosing pruning, vocabulary and bit widths together, for a budget on the runtime that will run the model."""
