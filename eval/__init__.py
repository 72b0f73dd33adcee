"""What a model does: answers to benchmarks under decoders, attacks, probes, judges' verdicts, statistics and the report.

    for eval_task in EvalConfig().eval_tasks("instruct"):
        run_element(eval_task, "models/full-20/instruct", "instruct", EvalConfig(), data_root=None, out=out, seed=0)

`run_element` is in `curricula.eval.runner`, which imports torch; the names below import nothing heavy.
"""

from curricula.eval.config import EvalConfig as EvalConfig
from curricula.eval.rows import MODEL_KINDS as MODEL_KINDS
from curricula.eval.rows import ModelKind as ModelKind
from curricula.eval.tasks import EvalTask as EvalTask
