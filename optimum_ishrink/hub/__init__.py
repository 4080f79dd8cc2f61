"""Publishing: one commit, complete or not at all, and no token anywhere."""
