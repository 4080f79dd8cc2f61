"""Architectures as data: one JSON description per family, bound to a model's config."""
