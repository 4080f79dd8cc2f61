"""Recovery: training what is left of a model, with labels, with a teacher, or with nothing but the model itself."""
