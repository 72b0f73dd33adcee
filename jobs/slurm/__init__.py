"""A study's plan on Slurm, as job arrays. Slurm does all of the scheduling; no process here outlives its command.

`profile.py` describes a cluster, `script.py` writes the batch script of an array, and `submit.py` submits arrays.
`submissions.py` records what was submitted, `commands.py` calls Slurm, and `restarts.py` gives up what makes no progress.
"""
