"""What safety costs: a model's capability, by tasks of EleutherAI's lm_eval, both published and from a local folder.

`settings.py` has the tables of tasks; `harness.py` reads tasks from a folder and runs lm_eval on a loaded model.
"""
