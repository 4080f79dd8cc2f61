"""The zero-out analysis: quality against sparsity, and what each layer is worth, before anything is cut."""
