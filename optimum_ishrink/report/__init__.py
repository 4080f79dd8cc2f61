"""The records of a run, their tables, and the page that compares several."""
