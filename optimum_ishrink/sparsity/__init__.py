"""The stage that sets weights of the layers' matrices to zero, in a pattern or anywhere."""
