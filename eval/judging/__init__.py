"""From answers to verdicts: `merge` judges a model's answers, `rejudge` judges stored ones with another judge.

`verdicts` keeps the verdicts beside the answers:

    rows = read_rows(path, GenerationRow)
    JudgeRun(rows, verdicts_path(path), load_judge(config, "attack", None)).complete()
    judged = read_judged(path)
"""

from curricula.eval.judging.verdicts import JudgeRun as JudgeRun
from curricula.eval.judging.verdicts import kind_of as kind_of
from curricula.eval.judging.verdicts import read_judged as read_judged
from curricula.eval.judging.verdicts import verdicts_path as verdicts_path
