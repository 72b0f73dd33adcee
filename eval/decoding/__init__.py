"""Decoders, which turn a model's logits into answers: top-k sampling, greedy decoding, SafeBeam, and their settings."""
