"""The verbs `curricula data world`, `tokenize`, `check` and `inspect`: make a fictional world or a study's shards, show what a
study reads, and show a shard."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.text import Text

from curricula.curriculum.config import Source
from curricula.curriculum.sources.conversations import TuningSet
from curricula.curriculum.sources.declared import TextTable
from curricula.curriculum.sources.registry import local_root
from curricula.curriculum.tokens.shards import MEND, Shard, manifest_path, read_manifest, source_shards, whole_manifest
from curricula.curriculum.tokens.tokenizer import load_tokenizer, special_ids, tokenizer_hash
from curricula.curriculum.world.fiction import World, WorldConfig
from curricula.errors import UsageError, UserError
from curricula.eval.attacks.prompts import check_distortable
from curricula.eval.benchmarks import Prompt, load_prompts
from curricula.eval.contamination import PromptFinder, overlap_rows
from curricula.eval.data_check import SHOWN_CHARACTERS, documents_of, shard_documents, table_facts, text_facts
from curricula.eval.probes.texts import check_texts
from curricula.eval.report.console import new_table
from curricula.jobs.cli.local import run_elements, run_root
from curricula.jobs.cli.options import require_with
from curricula.jobs.downloads import check_pool, look_at_tables, read_study, read_tables, used_pools
from curricula.jobs.estimates import read_sources
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run, tokenised, tokenizer_near, write_contamination
from curricula.jobs.study import Study, load_study
from curricula.terminal import count, json_text, one_line, plural, printable, say

SAMPLE = 2048
"""Default length of a sample, in tokens: that of the paper's sequences."""
PIECE = 1 << 24
"""Tokens compared at a time: a shard may be larger than memory."""
SHOWN = 4096
"""Tokens of a document or sample that are printed, at most."""


def world(args: argparse.Namespace) -> int:
    from curricula.curriculum.world.datasets import write_world

    config, is_there = WorldConfig(seed=args.seed), (args.out / "world.json").exists()
    if args.out.is_dir() and any(args.out.iterdir()) and not is_there:
        raise UsageError(f"{args.out}: is not empty and holds no fictional world; name a new folder")
    if is_there and World.load(args.out).config != config:  # a kill would leave a mixture of two that looks complete
        raise UsageError(f"{args.out}: holds another fictional world; name a new folder")
    write_world(args.out, config)
    print(f"The fictional world's datasets are in {args.out}; use them with CURRICULA_DATA={args.out}")
    return 0


def tokenize(args: argparse.Namespace) -> int:
    """Run the study's jobs up to tokenising as `submit` does, so that a later `submit` finds them done."""
    study = read_study(args.study)
    for name in args.source or ():
        if name not in study.sources:
            raise UsageError(f"--source {name}: the study has no such source; it has {', '.join(study.sources)}")
    plan = plan_study(study)
    chosen = [
        (job.name, element.label)
        for job in plan.jobs_up_to(["tokenize"])
        for element in job.elements
        if not args.source or element.source in ("", *args.source)
    ]
    console = Console(stderr=True, highlight=False, markup=False)
    run = run_elements(run_root(study, args.run), plan, console, chosen, args.workers)
    print(f"Shards are in {run.shards}")
    shards = [element for job, label in chosen if (element := plan.by_key[job, label][1]).shard]
    if gone := [one for one in shards if whole_manifest(run.shards / one.source / one.shard) is None]:
        print(
            f"{plural(len(gone), 'lost shard')} not made again: nothing has yet to read them, and all that has read them would "
            "have to run again; to have them, name another folder with --run"
        )
    return 0


def check(args: argparse.Namespace) -> int:
    """Open the tables, benchmarks and probe texts of a study. The exit code is 1 if something is wrong or not there yet."""
    study = load_study(args.study)
    run = Run.open(args.run) if args.run else None
    if run:
        if args.documents is None:
            run.admit()  # the counts are written there
        run.check(study)
    if study.world and not run:
        from curricula.curriculum.world.datasets import write_world

        with tempfile.TemporaryDirectory() as folder:  # made for the check alone
            write_world(Path(folder), study.world)
            facts = _checked(study, Path(folder), None, args.documents)
    else:
        facts = _checked(study, run.data_root if run else local_root(), run, args.documents)
    if run and facts["from_shards"] and args.documents is None and facts["overlap"] and not facts["problems"]:
        write_contamination(run, facts["overlap"])
    if args.json:
        print(json_text(facts))
    else:
        _print_check(facts, Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False))
    return 1 if facts["problems"] else 0


@contextlib.contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Add a UserError of the block to `problems`, unless the same one is there already."""
    try:
        yield
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))


def _checked(study: Study, root: Path | None, run: Run | None, limit: int | None) -> dict[str, Any]:
    """The facts that `check` prints, with what is wrong under "problems"."""
    problems: list[str] = []
    with _noted(problems):
        look_at_tables(study, root)
    benchmarks = _benchmarks(study, root, problems)
    probes = study.used_probes
    if probes and all(table.is_here(root) for table in probes.tables):
        with _noted(problems):
            check_texts(root, probes)
    prompts = [prompt for of_benchmark in benchmarks.values() for prompt in of_benchmark]
    finder = PromptFinder([prompt.text for prompt in prompts])
    tables, overlaps = [], {}
    shards = tokenised(run) if run else False
    trained = {f"sources.{name}" for name in read_sources(study)} | {f"tuning_sets.{name}" for name in used_pools(study)}
    console = Console(stderr=True)
    for key, table in read_tables(study).items():
        with console.status(f"reading {key}"), _noted(problems):
            if not table.is_here(root):
                raise UserError(f"{key}: {table.place}: {NOT_HERE}")
            about, documents = table_facts(key, table, root or Path(), limit), documents_of(key, table, root or Path())
            if run and shards and isinstance(table, Source):
                documents = shard_documents(run.shards / key.removeprefix("sources."), run.tokenizer)
            counts, overlap = text_facts(documents, finder, limit)
            tables.append(about | counts)
            if key in trained:
                overlaps[key] = overlap
            if counts["documents"] and isinstance(table, TuningSet) and limit is None:  # it reads all of the set
                check_pool(study, key.removeprefix("tuning_sets."), root or Path())
            if not counts["documents"] and isinstance(table, (TextTable, TuningSet)):
                raise UserError(f"{key}: {table.place}: no row of it is read; correct its scores or labels")
    rows = list(overlap_rows(overlaps, finder, [prompt.benchmark for prompt in prompts]))
    return {
        "study": study.name,
        "from_shards": shards,
        "limit": limit,
        "tables": tables,
        "benchmarks": {
            name: {"prompts": len(found), "first": [prompt.text[:SHOWN_CHARACTERS] for prompt in found[:3]]}
            for name, found in benchmarks.items()
        },
        "overlap": rows,
        "problems": problems,
    }


def _benchmarks(study: Study, root: Path | None, problems: list[str]) -> dict[str, Sequence[Prompt]]:
    """The prompts of the study's benchmarks, without those of a benchmark that has a problem."""
    evaluation = study.evaluation
    benchmarks: dict[str, Sequence[Prompt]] = {}
    for name in study.used_benchmarks:
        with _noted(problems):
            if root is None and name not in evaluation.prompts:
                raise UserError(f"benchmark {name}: {NOT_HERE}")
            prompts = load_prompts(name, root, own=evaluation.prompts, accept_changed=evaluation.accept_changed)
            if name in study.distorted:
                check_distortable(name, prompts)
            benchmarks[name] = prompts
    return benchmarks


def _print_check(facts: dict[str, Any], console: Console) -> None:
    for about in facts["tables"]:
        size = f"{plural(about['files'], 'file')}, {count(about['bytes'])}B, {about['rows']:,} rows"
        console.print(f"\n{about['table']}: {printable(about['place'])}: {size}", style="bold", soft_wrap=True)
        for row in about["first_rows"]:
            shown = "  ".join(f"{name}={value!r}" for name, value in row.items())
            console.print(f"  {one_line(shown, 240)}", soft_wrap=True)
        odd = ", ".join(f"{about[key]:,} {what}" for key, what in _COUNTED.items() if about.get(key)) or _FINE
        if about["documents"]:  # a table of prompts has none
            console.print(f"  {plural(about['documents'], 'document')}, {count(about['characters'])} characters; {odd}")
    for name, found in facts["benchmarks"].items():
        console.print(f"\nbenchmark {name}: {found['prompts']:,} prompts", style="bold")
        for text in found["first"]:
            console.print(f"  {one_line(text, 240)}", soft_wrap=True)
    read = "the run's shards and tuning sets" if facts["from_shards"] else "the tables"
    limited = f", the first {facts['limit']:,} documents of each" if facts["limit"] else ""
    headings = ("benchmark", "text", "prompts", "too short", "13-gram", "near")
    table = new_table(f"Prompts that occur in {read}{limited}", *headings, left=2)
    for row in facts["overlap"]:
        if row["text"] == "all" or row["overlapping"] or row["near"]:
            table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in row.values()))
    if facts["overlap"]:
        console.print()
        console.print(table)
    for problem in facts["problems"]:
        say(console, f"✗ {problem}", "red")


_COUNTED = {
    "empty": "empty",
    "not_utf8": "not UTF-8",
    "repeated_ids": "with an id given before",
    "exact_duplicates": "repeated exactly",
    "near_duplicates": "repeated in nearly the same words",
    "refusals": "labelled a refusal",
}
_FINE = "none of them empty or alike"
NOT_HERE = "not here yet; fetch it with `curricula data fetch` and set CURRICULA_DATA, or give --run of a run that has it"


def inspect(args: argparse.Namespace) -> int:
    require_with(args, "--sequence-length", "--sample")
    prefix: Path = args.prefix
    if prefix.is_dir():  # a source: its first shard
        prefix = source_shards(prefix)[0]
    elif prefix.suffix in (".bin", ".idx", ".json"):
        prefix = prefix.with_suffix("")
    shard = Shard.open(prefix)
    shard.check()
    lengths = shard.lengths
    folder = args.tokenizer or tokenizer_near(prefix)
    tokenizer = load_tokenizer(folder)
    manifest = read_manifest(prefix) if args.verify or manifest_path(prefix).exists() else None
    if manifest and manifest["tokenizer"] != tokenizer_hash(tokenizer):
        raise UserError(
            f"{folder}: is not the tokenizer that {prefix} was made with, and would show other text; name the right one with "
            "--tokenizer"
        )
    if manifest and manifest["tokens"] != shard.length:
        raise UserError(f"{shard.bin_path}: {shard.length} tokens, but its manifest says {manifest['tokens']}; {MEND}")
    ids = _chosen_tokens(args, prefix, shard)
    end, tag = special_ids(tokenizer)
    starts = range(0, len(shard.tokens), PIECE)
    tags = sum(int(np.count_nonzero(shard.tokens[start : start + PIECE] == tag)) for start in starts)
    least, most = int(shard.tokens.min(initial=0)), int(shard.tokens.max(initial=0))
    if least < 0 or most >= tokenizer.get_vocab_size():
        raise UserError(
            f"{prefix}.bin: holds id {least if least < 0 else most}, but the tokenizer has {tokenizer.get_vocab_size()} "
            "entries; name the tokenizer it was made with, by --tokenizer, or tokenise again"
        )
    facts: dict[str, Any] = {
        "shard": str(prefix),
        "documents": len(lengths),
        "tokens": len(shard.tokens),
        "length_quantiles": np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).astype(int).tolist() if len(lengths) else [],
        "length_histogram": _length_histogram(lengths),
        "tags": tags,
        "tag_rate": tags / max(1, len(shard.tokens)),
        "shown": f"document {args.document or 0}" if args.sample is None else f"sample {args.sample}",
        "text": tokenizer.decode(ids.tolist(), skip_special_tokens=False),
    }
    if manifest:
        facts["manifest"] = manifest
        if args.verify:
            if hashlib.sha256(shard.tokens.data).hexdigest() != manifest["sha256"]:
                raise UserError(f"{shard.bin_path}: its tokens do not match its manifest; {MEND}")
            facts["verified"] = True
    if args.json:
        print(json_text(facts))
    else:
        text = _highlighted(ids[:SHOWN], tokenizer, {tag: "bold black on yellow", end: "dim"})
        if len(ids) > SHOWN:
            text.append(f" ... and {len(ids) - SHOWN:,} more tokens; --json has them all", "italic")
        _print_facts(facts, text)
    return 0


def _length_histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """How many documents have a length "from" so many tokens "to" so many, without empty ranges at either end."""
    counts, edges = np.histogram(np.log10(np.maximum(1, lengths)), bins=np.arange(0, 8.5, 0.5))
    filled = np.flatnonzero(counts)
    shown = slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0)
    return [
        {"from": math.ceil(10**low), "to": math.ceil(10**high) - 1, "documents": int(count)}
        for low, high, count in zip(edges[shown], edges[1:][shown], counts[shown])
    ]


def _chosen_tokens(args: argparse.Namespace, prefix: Path, shard: Shard) -> np.ndarray:
    """The tokens of the requested document or sample."""
    if args.sample is not None:
        length = args.sequence_length or SAMPLE
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
    first, end = (int(shard.lengths[:documents].sum()) for documents in (number, number + 1))
    return shard.tokens[first:end]


def _highlighted(ids: np.ndarray, tokenizer: Any, styles: dict[int, str]) -> Text:
    """The text of `ids`, with the tokens in `styles` highlighted. A tag that the text merely spells out is not."""
    shown = Text()
    ends = np.flatnonzero(np.isin(ids, list(styles)))
    for piece in np.split(ids, np.sort(np.concatenate([ends, ends + 1]))):
        style = styles.get(int(piece[0]), "") if len(piece) else ""
        shown.append(printable(tokenizer.decode(piece.tolist(), skip_special_tokens=False)), style)
    return shown


def _print_facts(facts: dict[str, Any], shown: Text) -> None:
    console = Console(highlight=False, markup=False)
    console.print(f"{printable(facts['shard'])}: {facts['documents']:,} documents, {facts['tokens']:,} tokens", soft_wrap=True)
    console.print(f"tags: {facts['tags']:,}, {facts['tag_rate']:.2%} of the tokens")
    if facts.get("verified"):
        console.print("verified: the tokens match the manifest")
    table = new_table("Tokens per document", "tokens", "documents", "", left=0)
    most = max((row["documents"] for row in facts["length_histogram"]), default=0)
    for row in facts["length_histogram"]:
        bar = ProgressBar(total=max(1, most), completed=row["documents"], width=40)
        table.add_row(f"{row['from']:,} to {row['to']:,}", f"{row['documents']:,}", bar)
    console.print(table)
    console.print(f"{facts['shown']}:", shown)
