"""The form of profiles, and a runtime that they name.

Imports nothing: a program that profiles another device holds this file.
"""

PROFILE_SCHEMA = 3
"""Number of the form. Profiles hold what was measured; prices are fitted when they are read."""

DEVICE_REPORT = "ishrink-device-report"
"""What a browser's report of its device is called in the file; it can hold a profile."""

TORCH = "torch"
"""The runtime that runs what shrink writes."""
