"""Evaluation: measurements of quality and speed, for a report."""
