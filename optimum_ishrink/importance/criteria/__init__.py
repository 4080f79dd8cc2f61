"""Importance criteria, one per file. A function that a file here registers is available on the command line."""
