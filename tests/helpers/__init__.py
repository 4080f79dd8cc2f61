"""Helpers that tests share: tiny models, a local Hub, tasks, cards and records."""
