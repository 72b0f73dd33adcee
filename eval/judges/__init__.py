"""Judges: what an answer counts as. `registry.load_judge` makes one, and imports what it needs (torch, a client) only then."""
