"""Create a judge from its settings, and check before weeks of training that it could judge.

The check loads no model and asks no question. A judge's module is imported only when the judge is created. A new judge also
adds its name to `settings.JudgeName`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from curricula.curriculum.sources.hub import hub_explained
from curricula.errors import UsageError, UserError
from curricula.eval.judges.question import Judge
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import find_template
from curricula.packages import packaged_gguf
from curricula.terminal import one_line

log = logging.getLogger(__name__)

ALWAYS_UP = "https://api.openai.com"
"""A server that is always up. Any other might be started only after training."""


def load_judge(settings: JudgeConfig, kind: str, world_root: Path | None) -> Judge:
    """Create the judge of answers of `kind`, "attack" or "overrefusal"."""
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
    template = find_template(settings, kind)
    if settings.on_this_machine:
        from curricula.eval.judges.model_judge import LocalClassifier, LocalModel

        return (LocalModel if settings.name == "local" else LocalClassifier)(settings, template)
    from curricula.eval.judges.served import ServedJudge

    return ServedJudge(settings, template)


def check_judge(settings: JudgeConfig, kind: str, world_root: Path | None) -> None:
    """Raise UserError if the judge of answers of `kind` lacks a package, a world, a model, or a server's address or key."""
    load_judge(settings, kind, world_root)
    check_access(settings)


def check_access(settings: JudgeConfig) -> None:
    """Raise UserError if the judge's model, or its server's address or key, is missing. Warn about a server that is not up."""
    if settings.on_this_machine:
        _check_model(settings.model_name)
    elif settings.has_template:
        _check_server(settings)


def _check_model(name: str) -> None:
    """Raise UserError unless the model is a folder, or in a package, the hub's cache or the hub. No weights are downloaded."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if Path(name).exists() or packaged_gguf(name):
        return
    repository, _, revision = name.partition("@")
    what = f"judge.model {name}: no such folder, not in the hub's cache (`hf download` puts it there)"
    try:
        with hub_explained(what, repository, revision or None):
            config = try_to_load_from_cache(repository, "config.json", revision=revision or None)
            if isinstance(config, str) and any(
                path.suffix in (".safetensors", ".bin") for path in Path(config).parent.iterdir()
            ):
                return
            get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision or None))
    except (ImportError, OSError, ValueError) as error:  # as of a proxy or a certificate file that cannot be used
        raise UserError(
            f"{what}, and the hub cannot be asked ({type(error).__name__}: {one_line(str(error), 160)}); name its folder, or "
            "correct HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY or SSL_CERT_FILE"
        ) from None


def _check_server(settings: JudgeConfig) -> None:
    import asyncio

    from curricula.eval.judges.served import connect

    endpoint = connect(settings)
    always_up = endpoint.host == ALWAYS_UP
    if always_up and not os.environ.get("OPENAI_API_KEY", "").strip():
        raise UserError(f"judge.url: {ALWAYS_UP} needs a key, and OPENAI_API_KEY holds none; set it where answers are judged")
    why = asyncio.run(endpoint.doubt(settings.model_name))
    if why and always_up:
        raise UserError(f"judge {settings.model_name}: {why}; correct the judge's settings or the network")
    if why:
        log.warning("judge: %s; it must be up when answers are judged", why)
