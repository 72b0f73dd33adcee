"""A study's plan on Slurm, as job arrays. Slurm does all of the scheduling; no process here outlives its command."""
