"""Types of GGUF that options name."""

PLAIN_TYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Types whose scales are known without another program, so that weights can be rounded to them for what their matrices
compute, and be trained for them."""
