"""Attacks that optimise a prompt against a model: GCG (`gcg.py`)."""
