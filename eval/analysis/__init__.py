"""From the rows of a study to its numbers: rates with intervals, differences between arms, and tests of the paper's claims.

Read in this order: `study_rows` (what goes in), `statistics` (the arithmetic), `accuracy` (a judge's errors), `metrics`
(one model on one benchmark), `differences` (arm against arm), `claims` (the paper's, as data) and `claim_tests`.

All but `study_rows` import scipy, so only its names are handed on here.
"""

from curricula.eval.analysis.study_rows import ArmInfo, StudyRows, read_study_rows

__all__ = ["ArmInfo", "StudyRows", "read_study_rows"]
