"""Slurm: a study's graph as job arrays. Slurm does all of the scheduling; nothing here outlives the command."""
