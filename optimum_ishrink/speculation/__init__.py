"""Drafts: cut models, or a model's own lower layers, that propose tokens which the whole model then checks."""
