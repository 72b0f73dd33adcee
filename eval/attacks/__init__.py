"""Attacks: GCG (`gcg.py`), rewritten prompts and prefilled answers (`rewriting.py`), what others found (`replay.py`), a model
without its direction of refusal (`ablation.py`), and the worst case over all of them (`worst_case.py`)."""
