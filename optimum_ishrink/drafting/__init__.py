"""Drafting the description of an architecture, and proving a description on a tiny random model."""
