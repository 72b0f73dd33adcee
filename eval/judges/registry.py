"""The judges by name: `refusal-phrases`, `world`, `harmbench`, `llm`."""

from __future__ import annotations

from pathlib import Path

from curricula.errors import UsageError
from curricula.eval.judges.question import Judge
from curricula.eval.judges.settings import JudgeConfig

__all__ = ["load_judge"]


def load_judge(settings: JudgeConfig, kind: str, world_root: Path | None) -> Judge:
    """The judge of answers of `kind`, "attack" or "overrefusal".

    Raises UsageError when it cannot judge these, or needs a world, server or template that is not there.
    """
    if settings.name == "refusal-phrases":
        from curricula.eval.judges.phrases import RefusalPhrases

        return RefusalPhrases()
    if settings.name == "world":
        from curricula.eval.judges.world import WorldJudge

        if world_root is None:
            raise UsageError(
                "judge 'world': there is no fictional world to judge by; use refusal-phrases, or name the world's folder"
            )
        return WorldJudge(world_root)
    from curricula.eval.judges.local import LocalClassifier
    from curricula.eval.judges.served import ServedJudge
    from curricula.eval.judges.templates import find_template
    from curricula.eval.judges.text import clip_of

    template = find_template(settings.template, settings.name, settings.model_name, kind)
    if settings.on_this_machine:
        return LocalClassifier(settings, template)
    return ServedJudge(settings, template, clip_of(settings))
