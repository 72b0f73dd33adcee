"""The exact order in which training reads samples: a pure function of the step, across phases, epochs and restarts.

`pretraining.PretrainingBatches` and `tuning.TuningBatches` are the two kinds of `BatchSource`.
"""

from curricula.curriculum.stream.blend import Blend, Phase
from curricula.curriculum.stream.pretraining import BatchSource, Rows

__all__ = ["BatchSource", "Blend", "Phase", "Rows"]
