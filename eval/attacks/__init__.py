"""Attacks: GCG, rewritten and replayed prompts, ablation of the refusal direction, and the worst case over attacks."""
