"""The verbs about data: world, tokenize, inspect."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress as Bar
from rich.text import Text

from curriculum.errors import UsageError
from jobs.run import Run
from jobs.study import load_study


def world(words: argparse.Namespace) -> int:
    from curriculum.corpus import write_world
    from curriculum.world import WorldConfig

    write_world(words.out, WorldConfig(seed=words.seed))
    print(f"The fictional world's datasets are in {words.out}; use them with CURRICULA_DATA={words.out}")
    return 0


def tokenize(words: argparse.Namespace) -> int:
    from jobs.graph import Element
    from jobs.stages import prepare, tokenize_one
    from jobs.verbs import run_root

    study = load_study(words.study)
    names = words.source or list(study.sources)
    for name in names:
        if name not in study.sources:
            raise UsageError(f"--source {name}: the study has no such source; it has {', '.join(study.sources)}")
    root = run_root(study, words.run)
    with Run.locked(root), Bar(console=Console(stderr=True)) as bar:
        run = Run.create(root, study)
        task = bar.add_task("prepare", total=None)
        prepare(run)
        bar.update(task, total=1, completed=1)
        for name in names:
            task = bar.add_task(name, total=None)

            def report(done: int, total: int, task: int = task, **_: object) -> None:
                bar.update(task, completed=done, total=total)  # type: ignore[arg-type]

            tokenize_one(run, Element(name, source=name), report)
            bar.update(task, total=1, completed=1)
    print(f"Shards are in {run.shards}")
    return 0


def inspect(words: argparse.Namespace) -> int:
    from curriculum.indexed import Shard
    from curriculum.tokenizer import TAG, load_tokenizer

    prefix: Path = words.prefix.with_suffix("") if words.prefix.suffix in (".bin", ".idx", ".json") else words.prefix
    shard = Shard.open(prefix)
    tokenizer = load_tokenizer(words.tokenizer or _tokenizer_near(prefix))
    if not 0 <= words.document < max(1, len(shard.lengths)):
        raise UsageError(f"--document {words.document}: {prefix} has documents 0 to {len(shard.lengths) - 1}")
    tag = tokenizer.token_to_id(TAG)
    first = int(shard.lengths[: words.document].sum(dtype=np.int64))
    length = int(shard.lengths[words.document]) if len(shard.lengths) else 0
    text = tokenizer.decode(shard.tokens[first : first + length].tolist(), skip_special_tokens=False)
    quantiles = np.quantile(shard.lengths, [0, 0.25, 0.5, 0.75, 1]).astype(int).tolist() if len(shard.lengths) else []
    facts = {
        "shard": str(prefix),
        "documents": len(shard.lengths),
        "tokens": len(shard.tokens),
        "length_quantiles": quantiles,
        "tag_rate": float(np.mean(shard.tokens == tag)) if len(shard.tokens) else 0.0,
        "document": words.document,
        "text": text,
    }
    if words.json:
        print(json.dumps(facts, indent=1))
        return 0
    console = Console(highlight=False, markup=False)
    console.print(f"{facts['shard']}: {facts['documents']:,} documents, {facts['tokens']:,} tokens", soft_wrap=True)
    console.print(f"lengths: minimum, quartiles, maximum {quantiles}; tags: {facts['tag_rate']:.2%} of tokens")
    shown = Text(text)
    shown.highlight_words([TAG], "bold yellow")
    console.print(f"document {words.document}:", shown)
    return 0


def _tokenizer_near(prefix: Path) -> Path:
    """The tokenizer of the run folder that the shard lies in: <run>/data/shards/<source>/<shard>."""
    folder = prefix.resolve().parent.parent.parent / "tokenizer"
    if not folder.is_dir():
        raise UsageError(f"{prefix}: no tokenizer at {folder}; name one with --tokenizer")
    return folder
