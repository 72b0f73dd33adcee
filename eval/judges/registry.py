"""The judges by name: `refusal-phrases`, `world`, `harmbench`, `llm`."""

from __future__ import annotations

from pathlib import Path

from curriculum.errors import UsageError
from eval.judges.question import Judge
from eval.judges.settings import Judging

__all__ = ["load_judge"]


def load_judge(settings: Judging, kind: str, world_root: Path | None) -> Judge:
    """The judge of answers of `kind`, "attack" or "overrefusal".

    Raises UsageError when it cannot judge these, or needs a world, server or template that is not there.
    """
    if settings.name == "refusal-phrases":
        from eval.judges.phrases import RefusalPhrases

        return RefusalPhrases()
    if settings.name == "world":
        from eval.judges.world import WorldJudge

        if world_root is None:
            raise UsageError(
                "judge 'world': there is no fictional world to judge by; use refusal-phrases, or name the world's folder"
            )
        return WorldJudge(world_root)
    from eval.judges.local import LocalClassifier
    from eval.judges.served import ServedJudge
    from eval.judges.templates import find_template
    from eval.judges.text import clip_of

    template = find_template(settings.template, settings.name, settings.model_name, kind)
    if settings.on_this_machine:
        return LocalClassifier(settings, template)
    return ServedJudge(settings, template, clip_of(settings))
