"""A study's plan on Slurm, as job arrays. Slurm does all of the scheduling; no process here outlives its command.

`profile.py` describes a cluster, `script.py` writes the batch script of an array, `submit.py` submits arrays and `render.py`
writes them as files. `submissions.py` records what was submitted, and `commands.py` calls Slurm.
"""
