"""The judges by name. Each is imported only when it is loaded. A new judge also adds its name to `settings.JudgeName`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from curricula.errors import UsageError
from curricula.eval.judges.question import Judge
from curricula.eval.judges.settings import JudgeConfig, JudgeName


def load_judge(settings: JudgeConfig, kind: str, world_root: Path | None) -> Judge:
    """The judge of answers of `kind`, "attack" or "overrefusal".

    Raises UsageError when it cannot judge these, or needs a world, server or template that is not there.
    """
    return LOADERS[settings.name](settings, kind, world_root)


def _refusal_phrases(settings: JudgeConfig, kind: str, world_root: Path | None) -> Judge:
    from curricula.eval.judges.rules import RefusalPhrases

    return RefusalPhrases()


def _world(settings: JudgeConfig, kind: str, world_root: Path | None) -> Judge:
    from curricula.eval.judges.rules import WorldJudge

    if world_root is None:
        raise UsageError(
            "judge 'world': there is no fictional world to judge by; use refusal-phrases, or name the world's folder"
        )
    return WorldJudge(world_root)


def _model(settings: JudgeConfig, kind: str, world_root: Path | None) -> Judge:
    from curricula.eval.judges.templates import find_template

    template = find_template(settings, kind)
    if settings.name == "local":
        from curricula.eval.judges.local import LocalModel

        return LocalModel(settings, template)
    if settings.on_this_machine:
        from curricula.eval.judges.local import LocalClassifier

        return LocalClassifier(settings, template)
    from curricula.eval.judges.served import ServedJudge

    return ServedJudge(settings, template)


def _python(settings: JudgeConfig, kind: str, world_root: Path | None) -> Judge:
    from curricula.eval.judges.rules import PythonJudge

    return PythonJudge(settings)


LOADERS: dict[JudgeName, Callable[[JudgeConfig, str, Path | None], Judge]] = {
    "refusal-phrases": _refusal_phrases,
    "world": _world,
    "harmbench": _model,
    "llm": _model,
    "local": _model,
    "python": _python,
}
