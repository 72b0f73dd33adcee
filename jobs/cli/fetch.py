"""The verb `curricula data fetch`: download the public datasets and benchmarks of a study to a data folder.

Standard output is one line for the shell, or JSON; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from curricula.curriculum.sources.declared import DATASETS, dataset
from curricula.curriculum.sources.hub import Download, downloads_of, fetch, is_fetched, read_record
from curricula.curriculum.sources.tables import table_exists
from curricula.curriculum.synthesis.shard import parse_shard
from curricula.errors import UsageError, UserError
from curricula.eval.benchmarks import BENCHMARKS, benchmark_downloads
from curricula.eval.report.console import new_table
from curricula.jobs.cli.bars import Bars
from curricula.jobs.cli.options import add_json_flag, add_verb, at_least
from curricula.jobs.downloads import named_downloads, once, study_downloads
from curricula.jobs.study import load_study
from curricula.terminal import json_text, say


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = add_verb(
        verbs,
        "fetch",
        "download public datasets from the Hugging Face hub to a data folder",
        "curricula data fetch --list",
        "curricula data fetch safeweb gsm8k advbench --out /scratch/data",
        "curricula data fetch --study jobs/studies/paper.yaml \\\n      --part $SLURM_ARRAY_TASK_ID/16",
        call="fetch:fetch_data",
        details="Datasets and benchmarks are stored as Parquet. The same command continues after an interruption. Gated "
        "datasets need HF_TOKEN. A study's tokenizer, judges and capability tasks are not fetched here, and probe texts are "
        "not on the hub.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="a dataset or benchmark, as --list shows them")
    parser.add_argument("--study", type=Path, help="all that this study reads")
    parser.add_argument("--out", type=Path, help="the data folder (default: CURRICULA_DATA, else data)")
    parser.add_argument("--rows", type=at_least(1), metavar="N", help="only the first N rows of each dataset, for a trial run")
    parser.add_argument("--part", type=parse_shard, metavar="I/N", help="fetch part I of N (from 0), for array jobs")
    parser.add_argument(
        "--list", action="store_true", help="list known datasets and benchmarks, and what the data folder holds"
    )
    add_json_flag(parser)


def fetch_data(args: argparse.Namespace) -> int:
    root: Path = args.out or Path(os.environ.get("CURRICULA_DATA") or "data")
    if args.list:
        if args.names or args.study or args.rows or args.part:
            raise UsageError("--list shows everything there is; leave NAME, --study, --rows and --part out")
        return _show(root, args.json)
    if args.rows and args.part:
        raise UsageError(f"--rows {args.rows}: leave out --part: the first rows are in one file")
    wanted = [item for name in args.names for item in named_downloads(name, root)]
    if args.study:
        study = load_study(args.study)
        if study.world:
            raise UsageError(f"{args.study}: the study has a world, which makes all its data; there is nothing to fetch")
        wanted += study_downloads(study, root)
    if not wanted:
        raise UsageError("nothing to fetch: give a name or --study (see --list)")
    console = Console(stderr=True, highlight=False, markup=False)
    fetched: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for item in once(wanted):
        try:
            if _state(item.download) == _OWN:
                record: dict[str, Any] = {"kept": True}
            else:
                with Bars(console) as bars:
                    record = fetch(item.download, bars.line(f"rows of {item.label}"), args.rows or item.rows, args.part)
        except UserError as error:
            say(console, f"curricula: {item.label}: {error}", "red")
            failed[item.label] = str(error)
            continue
        console.print(f"{item.label}: {_summary(record)}", soft_wrap=True)
        fetched.append({"name": item.label, "folder": str(item.download.out), **record})
    if args.json:
        print(json_text({"data": str(root.resolve()), "fetched": fetched, "failed": failed}))
    elif fetched:
        print(f"export CURRICULA_DATA={shlex.quote(str(root.resolve()))}")
    return 1 if failed else 0


def _summary(record: dict[str, Any]) -> str:
    if record.get("kept"):
        return "own files; left as they are"
    there = f"{record['rows']:,} rows in {len(record['rows_of'])} files, commit {record['revision'][:7]}, {record['licence']}"
    return there if record["complete"] else f"{there}; {record['files'] - len(record['rows_of'])} files are still missing"


_OWN = "own files"


def _state(download: Download) -> str:
    """What the data folder holds of a download; "" for nothing."""
    if download.finished.exists():
        limit = read_record(download.finished)["limit"]
        if not is_fetched(download):  # some of its files are gone
            return "begun"
        return "fetched" if limit is None else f"first {limit:,} rows"
    if download.begun.exists():
        return "begun"
    if download.whole and table_exists(download.whole):
        return _OWN
    has_files = any(download.out.glob(f"{download.prefix}[!.]*")) if download.out.is_dir() else table_exists(download.out)
    return _OWN if has_files else ""


def _show(root: Path, as_json: bool) -> int:
    rows = [_row(name, "dataset", downloads_of(name, root), dataset(name).tokens) for name in DATASETS]
    rows += [_row(name, "benchmark", benchmark_downloads(name, root)) for name in BENCHMARKS if name not in DATASETS]
    if as_json:
        print(json_text({"data": str(root.resolve()), "known": rows}))
        return 0
    headings = ("name", "hub", "revision", "licence", "gated", "in the folder", "tokens")
    table = new_table(f"Public datasets and benchmarks; data folder {root}", *headings, left=6)
    for row in rows:
        tokens = "" if row["tokens"] is None else f"{row['tokens'] / 1e9:.1f}B"
        gated = "yes" if row["gated"] else ""
        revision = (row["revision"] or "newest")[:7]
        table.add_row(row["name"], row["hub"], revision, row["licence"], gated, row["state"], tokens)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    console.print(table)
    return 0


def _row(name: str, kind: str, downloads: list[Download], tokens: int | None = None) -> dict[str, Any]:
    states = [_state(download) for download in downloads]
    alike = len(set(states)) == 1
    return {
        "name": name,
        "kind": kind,
        "hub": downloads[0].hub,
        "revision": downloads[0].revision,
        "licence": downloads[0].licence,
        "gated": downloads[0].gated,
        "tokens": tokens,
        "parts": [download.config for download in downloads if download.config],
        "state": states[0] if alike else f"{sum(map(bool, states))} of {len(states)} parts",
    }
