"""When should safety enter pretraining? A Slurm-native suite that carries out the study end to end."""
