"""Judges: what an answer counts as.

`question` says what a judge is asked and what it answers, `settings` how a judge is chosen and asked; `registry` knows the
judges by name. `load_judge` imports what a judge needs (torch, a client) only when called:

    judge = load_judge(JudgeConfig(name="refusal-phrases"), "attack", None)
"""

from curricula.eval.judges.question import UNPARSED as UNPARSED
from curricula.eval.judges.question import Estimate as Estimate
from curricula.eval.judges.question import Judge as Judge
from curricula.eval.judges.question import Question as Question
from curricula.eval.judges.question import Verdict as Verdict
from curricula.eval.judges.registry import load_judge as load_judge
from curricula.eval.judges.settings import JudgeConfig as JudgeConfig
