"""Evaluation: answers to benchmarks, attacks, probes, judges' verdicts, statistics and the report.

`runner.py` carries out one task on a model that `models.py` loads; both import torch. `verdicts.py` has its answers judged.
Importing the names below loads nothing heavy.
"""

from curricula.eval.config import EvalConfig as EvalConfig
from curricula.eval.rows import MODEL_KINDS as MODEL_KINDS
from curricula.eval.rows import ModelKind as ModelKind
from curricula.eval.tasks import EvalTask as EvalTask
