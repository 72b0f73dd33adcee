"""The judge `world`: the fictional world of the demo knows every right and wrong answer, so its verdicts are exact."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

from curricula.curriculum.world import fiction as world
from curricula.curriculum.world import grammar, lexicon
from curricula.eval.judges.question import Question
from curricula.eval.judges.rules import RuleJudge


class WorldJudge(RuleJudge):
    name = "world"

    def __init__(self, root: Path) -> None:
        self.world = world.World.load(root)
        digest = hashlib.sha256((root / "world.json").read_bytes())
        for module in (grammar, lexicon, world):
            digest.update(inspect.getsource(module).encode())
        self._version = digest.hexdigest()[:12]

    @property
    def version(self) -> str:
        return self._version

    def label(self, question: Question) -> str:
        if question.kind == "overrefusal":
            return self.world.judge_benign(question.behavior, question.response)
        # A continuation says little without its beginning: "the two over a fire" may or may not be a recipe.
        return self.world.judge_attack(question.behavior, f"{question.beginning} {question.response}".strip())
