"""Runtimes other than PyTorch in 16 bits: GGUF files for llama.cpp, and quantised checkpoints for PyTorch."""
