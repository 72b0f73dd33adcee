"""Attacks: GCG, rewritten and replayed prompts, and ablation of the refusal direction."""
