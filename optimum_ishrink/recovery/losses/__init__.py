"""One recovery loss a file. A file that registers a function here is found by its name on the command line."""
