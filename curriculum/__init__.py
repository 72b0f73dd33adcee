"""What the model reads, and when.

A study names sources and a curriculum over them (`config`). From its token budget follow arms, phases and the training tree
(`plan`). Datasets (`sources`, or the demo's fictional `world`) become shards of tokens (`tokens`), which are blended into the
exact stream of samples that training reads (`stream`). `synthesis` makes intervention data from raw text.
"""

from curricula.curriculum.config import Curriculum, Mix, PhaseConfig, Source, Tokenizer, Tuning
from curricula.curriculum.plan import Arm, Budget, Segment, arms_of, lines_of, training_tree

__all__ = [
    "Arm",
    "Budget",
    "Curriculum",
    "Mix",
    "PhaseConfig",
    "Segment",
    "Source",
    "Tokenizer",
    "Tuning",
    "arms_of",
    "lines_of",
    "training_tree",
]
