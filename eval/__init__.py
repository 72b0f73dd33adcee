"""What a model does: answers to benchmarks under decoders, attacks, probes, judges' verdicts, statistics and the report.

from curricula.eval import EvalConfig
from curricula.eval.runner import run_element       # imports torch

for task in EvalConfig().eval_tasks("instruct"):
    run_element(task, "runs/demo/models/full-20/instruct", "instruct", EvalConfig(), ...)
"""

from curricula.eval.config import EvalConfig as EvalConfig
from curricula.eval.rows import MODEL_KINDS as MODEL_KINDS
from curricula.eval.rows import ModelKind as ModelKind
from curricula.eval.tasks import TASKS as TASKS
from curricula.eval.tasks import EvalTask as EvalTask
