"""What safety costs: a model's capability by tasks of EleutherAI's lm_eval, published ones and those of a local folder.

`settings.py` says which tasks, `harness.py` reads those of a folder and runs lm_eval on a loaded model.
"""
