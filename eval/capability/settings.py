"""Which capability tasks run, and how. Imports no lm_eval: studies are read on login nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from curricula.eval.decoding.settings import Together
from curricula.settings import NonNegative, Positive, Settings, require_distinct

PlainName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")]
"""A name that is also the name of a file and of a column."""


class Published(NamedTuple):
    """A published task: its headline metric, and its size for estimates of cost."""

    folder: str
    """lm_eval's folder with the task; reading all of its folders takes many seconds."""
    metric: str
    filter: str
    """lm_eval's filter, which extracts the answer before it is scored."""
    questions: int
    requests: int
    """Texts scored for a question; 1 if the answer is generated."""
    prompt_tokens: int
    """Approximate tokens of a request."""
    answer_tokens: int = 0
    """Approximate tokens of a generated answer; 0 if given answers are scored."""


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
"""Lists of tasks, by the names that a study can use."""


class Capability(Settings, frozen=True):
    """What models can do apart from safety, measured by lm_eval (`pip install safety-curricula[lm-eval]`)."""

    tasks: Literal["quick", "full"] | Annotated[tuple[PlainName, ...], msgspec.Meta(min_length=1)] = "full"
    """`quick`, `full`, or a list of names: lm_eval's tasks and groups, tasks in `folder`, own sets of kind capability."""
    folder: str | None = None
    """A folder of task files, NAME.yaml in lm_eval's format, with their data. A relative path starts at the study
    file's folder."""
    limit: Positive | None = None
    """At most this many questions of each task, its first ones; null takes all."""
    few_shot: NonNegative | None = None
    """Answered examples before each question; null takes the task's own number."""
    chat_template: bool = False
    """Whether tuned models read questions in their chat template. Most published numbers are without it."""
    batch: Together = 16
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
