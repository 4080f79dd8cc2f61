"""Importance: what each KV group, query head, MLP neuron and layer is worth."""
