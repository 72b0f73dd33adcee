"""Evaluation: answers to benchmarks, attacks, probes, judges' verdicts, statistics and the report.

    loaded = load_model("models/full-20/instruct", "instruct")
    for eval_task in EvalConfig().eval_tasks("instruct"):
        run_element(eval_task, loaded, EvalConfig(), data_root=None, out=out, seed=0)

`load_model` is in `curricula.eval.models` and `run_element` in `curricula.eval.runner`; both modules import torch. Importing
the names below loads nothing heavy.
"""

from curricula.eval.config import EvalConfig as EvalConfig
from curricula.eval.rows import MODEL_KINDS as MODEL_KINDS
from curricula.eval.rows import ModelKind as ModelKind
from curricula.eval.tasks import EvalTask as EvalTask
