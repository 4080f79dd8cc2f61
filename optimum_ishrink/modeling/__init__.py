"""Running a model layer by layer, and its head in chunks."""
