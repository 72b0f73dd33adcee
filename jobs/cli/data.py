"""The verbs `curricula data world`, `tokenize` and `inspect`: make a fictional world or a study's shards, and show a shard."""

from __future__ import annotations

import argparse
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from curricula.curriculum.tokens.shards import MEND, Shard, read_manifest, source_shards
from curricula.errors import UsageError, UserError
from curricula.jobs.cli.local import run_elements, run_root
from curricula.jobs.downloads import read_study
from curricula.jobs.graph import plan_study
from curricula.terminal import json_text, printable

PIECE = 1 << 24
"""Tokens held in memory at a time: a shard may be larger than memory."""
SHOWN = 4096
"""Tokens of a document that are printed at most."""


def world(args: argparse.Namespace) -> int:
    from curricula.curriculum.world.datasets import write_world
    from curricula.curriculum.world.fiction import WorldConfig

    if args.out.is_dir() and any(args.out.iterdir()) and not (args.out / "world.json").exists():
        raise UsageError(f"{args.out}: is not empty and holds no fictional world; name a new folder")
    write_world(args.out, WorldConfig(seed=args.seed))
    print(f"The fictional world's datasets are in {args.out}; use them with CURRICULA_DATA={args.out}")
    return 0


def tokenize(args: argparse.Namespace) -> int:
    """Run the study's jobs up to tokenising, as `submit` does, which then finds them done."""
    study = read_study(args.study)
    for name in args.source or ():
        if name not in study.sources:
            raise UsageError(f"--source {name}: the study has no such source; it has {', '.join(study.sources)}")
    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers {args.workers}: give at least 1")
    plan = plan_study(study)
    chosen = [
        (job.name, element.label)
        for job in plan.jobs_up_to(["tokenize"])
        for element in job.elements
        if not args.source or element.source in ("", *args.source)
    ]
    console = Console(stderr=True, highlight=False, markup=False)
    run, _ = run_elements(run_root(study, args.run), plan, console, chosen, args.workers)
    print(f"Shards are in {run.shards}")
    return 0


def inspect(args: argparse.Namespace) -> int:
    from curricula.curriculum.tokens.tokenizer import load_tokenizer, special_ids, tokenizer_hash

    prefix: Path = args.prefix
    if prefix.is_dir():  # a source: its first shard
        prefix = source_shards(prefix)[0]
    elif prefix.suffix in (".bin", ".idx", ".json"):
        prefix = prefix.with_suffix("")
    shard = Shard.open(prefix)
    shard.check()
    lengths = shard.lengths
    folder = args.tokenizer or _tokenizer_near(prefix)
    tokenizer = load_tokenizer(folder)
    manifest = read_manifest(prefix) if prefix.with_name(prefix.name + ".json").exists() else None
    if manifest and manifest["tokenizer"] != tokenizer_hash(tokenizer):
        raise UserError(
            f"{folder}: is not the tokenizer that {prefix} was made with, and would show other text; name the right one with "
            "--tokenizer"
        )
    if manifest and manifest["tokens"] != shard.length:
        raise UserError(f"{shard.bin_path}: {shard.length} tokens, but its manifest says {manifest['tokens']}; {MEND}")
    ids = _chosen_tokens(args, prefix, shard)
    end, tag = special_ids(tokenizer)
    tags, least, most = _counted(shard, tag)
    if least < 0 or most >= tokenizer.get_vocab_size():
        raise UserError(
            f"{prefix}.bin: holds id {least if least < 0 else most}, but the tokenizer has {tokenizer.get_vocab_size()} "
            "entries; name the tokenizer it was made with, by --tokenizer, or tokenise again"
        )
    counts, edges = np.histogram(np.log10(np.maximum(1, lengths)), bins=np.arange(0, 8.5, 0.5))
    filled = np.flatnonzero(counts)
    shown = slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0)
    facts: dict[str, Any] = {
        "shard": str(prefix),
        "documents": len(lengths),
        "tokens": len(shard.tokens),
        "length_quantiles": np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).astype(int).tolist() if len(lengths) else [],
        "length_histogram": [
            {"from": math.ceil(10**low), "to": math.ceil(10**high) - 1, "documents": int(count)}
            for low, high, count in zip(edges[shown], edges[1:][shown], counts[shown])
        ],
        "tags": tags,
        "tag_rate": tags / max(1, len(shard.tokens)),
        "shown": f"document {args.document or 0}" if args.sample is None else f"sample {args.sample}",
        "text": tokenizer.decode(ids.tolist(), skip_special_tokens=False),
    }
    if manifest:
        facts["manifest"] = manifest
    if args.verify:
        facts["verified"] = _verify(prefix, shard, facts)
    if args.json:
        print(json_text(facts))
    else:
        text = _highlighted(ids[:SHOWN], tokenizer, {tag: "bold black on yellow", end: "dim"})
        if len(ids) > SHOWN:
            text.append(f" ... and {len(ids) - SHOWN:,} more tokens; --json has them all", "italic")
        _print_facts(facts, text)
    return 0


def _counted(shard: Shard, tag: int) -> tuple[int, int, int]:
    """The number of tags in a shard, and its least and greatest id."""
    tags, least, most = 0, 0, 0
    for start in range(0, len(shard.tokens), PIECE):
        piece = shard.tokens[start : start + PIECE]
        tags += int(np.count_nonzero(piece == tag))
        least, most = min(least, int(piece.min())), max(most, int(piece.max()))
    return tags, least, most


def _chosen_tokens(args: argparse.Namespace, prefix: Path, shard: Shard) -> np.ndarray:
    """The tokens of the requested document or sample."""
    if args.sample is not None:
        length = args.sequence_length
        if length < 1:
            raise UsageError(f"--sequence-length {length}: give at least 1")
        samples = max(0, (len(shard.tokens) - 1) // length)
        if not 0 <= args.sample < samples:
            raise UsageError(
                f"--sample {args.sample}: {prefix} has {samples} samples of {length} tokens, counted from 0; "
                "choose one of them or another --sequence-length"
            )
        return shard.tokens[args.sample * length : (args.sample + 1) * length + 1]
    number = args.document or 0
    if not 0 <= number < max(1, len(shard.lengths)):
        raise UsageError(f"--document {number}: {prefix} has documents 0 to {len(shard.lengths) - 1}")
    if not len(shard.lengths):
        return shard.tokens
    first = int(shard.lengths[:number].sum())
    return shard.tokens[first : first + int(shard.lengths[number])]


def _verify(prefix: Path, shard: Shard, facts: dict[str, Any]) -> bool:
    """True if the tokens match the manifest; raises UserError if they do not."""
    if "manifest" not in facts:
        raise UserError(f"{prefix}.json: no such file; without a manifest there is nothing to verify against")
    digest = hashlib.sha256()
    for start in range(0, len(shard.tokens), PIECE):
        digest.update(shard.tokens[start : start + PIECE].tobytes())
    if digest.hexdigest() != facts["manifest"]["sha256"]:
        raise UserError(f"{prefix}.bin: its tokens do not match its manifest; {MEND}")
    return True


def _highlighted(ids: np.ndarray, tokenizer: Any, styles: dict[int, str]) -> Text:
    """The text of `ids`, with these tokens in their styles. A tag that the text merely spells out is not highlighted."""
    shown = Text()
    ends = np.flatnonzero(np.isin(ids, list(styles)))
    for piece in np.split(ids, np.sort(np.concatenate([ends, ends + 1]))):
        style = styles.get(int(piece[0]), "") if len(piece) else ""
        shown.append(printable(tokenizer.decode(piece.tolist(), skip_special_tokens=False)), style)
    return shown


def _print_facts(facts: dict[str, Any], shown: Text) -> None:
    console = Console(highlight=False, markup=False)
    console.print(
        f"{printable(facts['shard'])}: {facts['documents']:,} documents, {facts['tokens']:,} tokens", soft_wrap=True
    )
    console.print(f"tags: {facts['tags']:,}, {facts['tag_rate']:.2%} of the tokens")
    if facts.get("verified"):
        console.print("verified: the tokens match the manifest")
    table = Table(title="Tokens per document", title_justify="left", box=None)
    table.add_column("tokens", justify="right")
    table.add_column("documents", justify="right")
    table.add_column("")
    most = max((row["documents"] for row in facts["length_histogram"]), default=0)
    for row in facts["length_histogram"]:
        bar = ProgressBar(total=max(1, most), completed=row["documents"], width=40)
        table.add_row(f"{row['from']:,} to {row['to']:,}", f"{row['documents']:,}", bar)
    console.print(table)
    console.print(f"{facts['shown']}:", shown)


def _tokenizer_near(prefix: Path) -> Path:
    """The tokenizer of the run folder that holds the shard: <run>/data/shards/<source>/<shard>."""
    folder = prefix.resolve().parent.parent.parent / "tokenizer"
    if not folder.is_dir():
        raise UsageError(f"{prefix}: no tokenizer at {folder}; name one with --tokenizer")
    return folder
