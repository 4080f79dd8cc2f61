"""Options: typed fields of dataclasses that become attributes, flags, YAML keys, saved keys and a reference page."""
