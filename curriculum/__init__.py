"""What the model reads, and when.

A study names sources and a curriculum over them (`config`). From its token budget follow the arms and their phases (`plan`)
and the training tree that the arms share (`tree`). Datasets (`sources`, or the demo's fictional `world`) become shards of
tokens (`tokens`), which are blended into the exact stream of samples that training reads (`stream`). `synthesis` makes
intervention data from raw text.
"""
