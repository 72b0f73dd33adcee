"""From the rows of a study to its numbers: rates with intervals, differences between arms, and tests of the paper's claims.

Read in this order: `study_rows` (what goes in), `statistics` (the arithmetic over prompts), `accuracy` (a judge's errors),
`metrics` (one model on one benchmark), `seeds` (the arithmetic over seeds and prompts), `runs` (the study by arm and run, lost
competence, each arm over its runs and against others), and `claims` (the paper's claims and their tests). `along` has the
curves over a training, `capability` what safety costs, `worst_case` the worst case over attacks, `representations` what arms
have in common in their hidden states, and `power` what a planned study can detect.

This package re-exports names of `study_rows` only, because all other modules import scipy.
"""

from curricula.eval.analysis.study_rows import ArmInfo, StudyRows, read_study_rows

__all__ = ["ArmInfo", "StudyRows", "read_study_rows"]
