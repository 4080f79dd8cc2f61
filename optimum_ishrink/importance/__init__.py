"""Importance: scores of KV groups, query heads, MLP neurons and layers."""
