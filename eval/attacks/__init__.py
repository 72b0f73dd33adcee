"""Attacks: GCG (`gcg.py`), prompts that are rewritten or that others found (`prompts.py`), a model without its direction of
refusal (`ablation.py`), and the worst case over all of them (`worst_case.py`)."""
