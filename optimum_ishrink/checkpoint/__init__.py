"""Opening, reading, writing and identifying checkpoints."""
