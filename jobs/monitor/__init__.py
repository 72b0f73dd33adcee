"""The progress of a run: what elements write while they work, and how it is read."""
