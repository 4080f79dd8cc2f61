"""Surgery: tensors in, smaller tensors out, and the checkpoint that holds them."""
