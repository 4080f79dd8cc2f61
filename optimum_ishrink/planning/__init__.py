"""Planning: the new shape, and what is removed for it. Arithmetic over scores and configs; it reads no weights."""
