"""The API: what the command line does, as methods."""
