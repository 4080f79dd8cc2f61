"""Surgery: cutting tensors, writing the smaller checkpoint, and repairing it in closed form."""
