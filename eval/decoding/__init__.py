"""Decoders, which turn a model's logits into answers: top-k sampling, greedy decoding, SafeBeam, and their settings.

`registry.py` is the table of decoders, `sampling.py` and `safebeam.py` are the algorithms.
"""
