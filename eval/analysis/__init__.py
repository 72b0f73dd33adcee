"""From the rows of a study to its numbers: rates with intervals, differences between arms, and tests of the paper's claims.

Read in this order: `study_rows` (what goes in), `statistics` (the arithmetic over prompts), `accuracy` (a judge's errors),
`metrics` (one model on one benchmark), `seeds` (the arithmetic over seeds and prompts), `runs` (the study by arm and run, lost
fluency, each arm over its runs and against others), and `claims` (the paper's, and their tests). `along` has curves over a
training, `capability` what safety costs; `power` is for before a study.

All but `study_rows` import scipy, so only its names are handed on here.
"""

from curricula.eval.analysis.study_rows import ArmInfo, StudyRows, read_study_rows

__all__ = ["ArmInfo", "StudyRows", "read_study_rows"]
