"""Judges: what an answer counts as. `registry.py` knows them by name, `question.py` says what one is."""
