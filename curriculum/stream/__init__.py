"""The exact order in which training reads samples: a pure function of the step, across phases, epochs and restarts.

`pretraining.PretrainingBatches` and `tuning.TuningBatches` are the two kinds of `BatchSource`.
"""
