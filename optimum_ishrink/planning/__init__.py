"""Planning: which shape, and what goes. Arithmetic over scores and configs; it never touches a weight."""
