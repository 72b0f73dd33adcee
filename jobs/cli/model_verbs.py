"""The verbs about one model: export, import."""

from __future__ import annotations

import argparse


def export(words: argparse.Namespace) -> int:
    from curricula.jobs.run import provenance
    from curricula.jobs.stages.stages import latest
    from curricula.model.convert import export_hf

    folder = words.checkpoint
    export_hf(latest(folder) if (folder / "latest").exists() else folder, words.out, words.tokenizer, provenance())
    print(f"Hugging Face model: {words.out}")
    return 0


def import_(words: argparse.Namespace) -> int:
    from curricula.jobs.stages.stages import model_source
    from curricula.model.convert import import_hf

    print(f"Megatron checkpoint: {import_hf(model_source(words.source), words.out)}")
    return 0
