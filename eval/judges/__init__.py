"""Judges decide what an answer counts as. `registry.load_judge` creates one, and only then imports torch or a client."""
