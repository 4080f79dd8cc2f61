"""The vocabulary as a dimension: which tokens need which, which always stay, and the tokenizer without the others."""
