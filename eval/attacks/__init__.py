"""Attacks: GCG (`gcg.py`, with its forward passes in `losses.py`), rewritten and replayed prompts (`prompts.py`), ablation of
the refusal direction (`ablation.py`), and the worst case over attacks (`worst_case.py`)."""
