"""Evaluation: what was lost and what was gained, as measurements that a report holds."""
