"""Decoders: how a model's tokens become answers. Top-k sampling and greedy search, SafeBeam, and their settings.

`registry.py` is the table of decoders, `sampling.py` and `safebeam.py` are the algorithms.
"""
