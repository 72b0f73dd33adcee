"""The judges by name. Each is imported only when it is loaded. A new judge also adds its name to `settings.JudgeName`."""

from __future__ import annotations

from pathlib import Path

from curricula.errors import UsageError
from curricula.eval.judges.question import Judge
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import find_template


def load_judge(settings: JudgeConfig, kind: str, world_root: Path | None) -> Judge:
    """The judge of answers of `kind`, "attack" or "overrefusal"."""
    from curricula.eval.judges.rules import PythonJudge, RefusalPhrases, WorldJudge

    if settings.name == "refusal-phrases":
        return RefusalPhrases()
    if settings.name == "python":
        return PythonJudge(settings, kind)
    if settings.name == "world":
        if world_root is None:
            raise UsageError(
                "judge 'world': there is no fictional world to judge by; use refusal-phrases, or name the world's folder"
            )
        return WorldJudge(world_root)
    if not settings.has_template:
        raise ValueError(f"judge {settings.name!r} is in settings.JudgeName, and load_judge makes none of it")
    template = find_template(settings, kind)
    if settings.on_this_machine:
        from curricula.eval.judges.local import LocalClassifier, LocalModel

        return (LocalModel if settings.name == "local" else LocalClassifier)(settings, template)
    from curricula.eval.judges.served import ServedJudge

    return ServedJudge(settings, template)
