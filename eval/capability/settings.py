"""Which capability tasks are run, and how. Imports no lm_eval: studies are read on login nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from curricula.settings import NonNegative, Positive, Settings, require_distinct

PlainName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")]
"""A name that becomes a file's and a column's."""


class Published(NamedTuple):
    """A published task: its headline metric, and its size for estimates of cost."""

    folder: str
    """Where lm_eval has it: reading all of its folders takes many seconds."""
    metric: str
    filter: str
    """How lm_eval reads the answer before the metric."""
    questions: int
    requests: int
    """Texts that are scored for a question, or 1 where it is answered by generation."""
    prompt_tokens: int
    """About, of one request."""
    answer_tokens: int = 0
    """About; 0 where the answers are given and only scored."""


PUBLISHED = {
    "mmlu": Published("mmlu/default", "acc", "none", 14_042, 4, 130),
    "arc_easy": Published("arc", "acc_norm", "none", 2_376, 4, 35),
    "arc_challenge": Published("arc", "acc_norm", "none", 1_172, 4, 40),
    "hellaswag": Published("hellaswag", "acc_norm", "none", 10_042, 4, 90),
    "piqa": Published("piqa", "acc_norm", "none", 1_838, 2, 35),
    "commonsense_qa": Published("commonsense_qa", "acc", "none", 1_221, 5, 60),
    "openbookqa": Published("openbookqa", "acc_norm", "none", 500, 4, 20),
    "winogrande": Published("winogrande", "acc", "none", 1_267, 2, 30),
    "triviaqa": Published("triviaqa", "exact_match", "remove_whitespace", 17_944, 1, 30, 32),
    "gsm8k": Published("gsm8k", "exact_match", "flexible-extract", 1_319, 1, 900, 256),
    "ifeval": Published("ifeval", "prompt_level_strict_acc", "none", 541, 1, 60, 1_280),
}
LISTS = {"quick": ("arc_easy", "hellaswag", "openbookqa", "piqa", "winogrande"), "full": tuple(PUBLISHED)}
"""The lists of tasks that a study can name."""


class Capability(Settings, frozen=True):
    """What models can do besides being safe, measured by lm_eval (`pip install safety-curricula[lm-eval]`)."""

    tasks: Literal["quick", "full"] | Annotated[tuple[PlainName, ...], msgspec.Meta(min_length=1)] = "full"
    """`quick`, `full`, or names: of lm_eval's tasks and groups, of tasks in `folder`, of own sets of kind capability."""
    folder: str | None = None
    """A folder of task files: NAME.yaml as lm_eval has them, and their data; relative to the study file's folder."""
    limit: Positive | None = None
    """At most this many questions of each task, its first ones; null takes all."""
    few_shot: NonNegative | None = None
    """Answered examples before each question; null leaves it to the task."""
    chat_template: bool = False
    """Whether tuned models read questions in their chat template; most published numbers do without."""
    batch: Positive = 16
    """Texts in one forward pass."""

    def check(self) -> None:
        require_distinct("tasks", self.names)

    @property
    def names(self) -> tuple[str, ...]:
        return LISTS[self.tasks] if isinstance(self.tasks, str) else self.tasks

    def local_file(self, name: str) -> Path | None:
        """The file that describes a task in `folder`; None if it is not there."""
        path = Path(self.folder or "", f"{name}.yaml")
        return path if self.folder and path.is_file() else None
