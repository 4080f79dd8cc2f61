"""On the edge: a checkpoint as GGUF, checked and timed in llama.cpp."""
