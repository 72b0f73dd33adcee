"""The verb `curricula eval rejudge`: judges stored answers with another judge, and shows both judges' rates and agreement."""

from __future__ import annotations

import argparse
import string
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curricula.curriculum.sources.registry import local_root
from curricula.errors import UsageError
from curricula.eval.judges.caveats import caveats, vague
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.report.console import interval, new_table, percent
from curricula.eval.tasks import JUDGED
from curricula.jobs.cli.bars import Bars, no_other_bars, quiet_libraries
from curricula.jobs.cli.eval import add_judge_options, before_asking, judge_from
from curricula.jobs.cli.options import add_json_flag, add_verb
from curricula.jobs.run import Run
from curricula.terminal import fixed, json_text, say

if TYPE_CHECKING:
    from curricula.eval.rejudge import Comparison


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = add_verb(
        verbs,
        "rejudge",
        "judge stored answers with another judge",
        "curricula eval rejudge runs/demo --judge harmbench \\\n      --judge-url http://node7:8000/v1",
        "curricula eval rejudge evaluations/instruct --judge llm \\\n      --judge-model gpt-6-luna --judge-url https://api.openai.com/v1",
        call="rejudge:rejudge",
        details="Answers are neither generated again nor rewritten; verdicts are added beside them, and no question is asked "
        "twice. Prints how the two judges agree (Cohen's kappa) and, if the judge's errors are known, a corrected rate "
        "(Rogan and Gladen).",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run folder, or the OUT of `curricula eval`")
    parser.add_argument("--by-model", action="store_true", help="a row for each model instead of one for all")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="people's labels, for the correction (columns key, label: harmful or safe)"
    )
    parser.add_argument("--world", type=Path, help="for the judge world: the fictional world's folder (default: FOLDER/world)")
    add_json_flag(parser)
    add_judge_options(parser, required=True)


def rejudge(args: argparse.Namespace) -> int:
    from curricula.eval.judges.registry import check_access
    from curricula.eval.rejudge import Rejudging, read_labels, stored_answers

    no_other_bars()
    settings = judge_from(args)
    if args.world and settings.name != "world":
        raise UsageError(f"--world {args.world}: only the judge world reads it, not {settings.name}; leave it out")
    if (args.folder / "study.yaml").exists():
        Run(args.folder).admit()  # a colleague may be unable to read what this user adds
    paths = stored_answers(args.folder)
    labels = read_labels(args.labels) if args.labels else {}
    judges = _judges(args, settings)
    console = Console(stderr=True, highlight=False)
    if settings.on_this_machine:
        quiet_libraries()
    work = Rejudging(paths, judges, args.retry_unparsed)
    if args.labels:
        work.require_labels(labels, args.labels)
    before_asking(args, work.judge_runs.values(), lambda: check_access(settings), console)
    with Bars(console) as bars:
        work.judge(bars.line(f"judge {settings.name}"))
    comparisons = work.comparisons(args.by_model, labels)
    if args.json:
        print(json_text([asdict(comparison) for comparison in comparisons]))
    else:
        # A path of a run's folders is wider than its column, which breaks it anywhere but at a blank.
        names = (" ".join(one.where.removeprefix(f"{args.folder}/eval/").rsplit("/", 1)) for one in comparisons)
        _print([replace(one, where=name) for one, name in zip(comparisons, names)], Console(highlight=False))
    if work.left_alone:
        (kind,) = (name for name, judge in judges.items() if judge is None)
        said = f"{work.left_alone:,} answers were not judged: judge {settings.name} gives no verdicts on {kind}."
        print(said, file=sys.stderr if args.json else sys.stdout)
    return 0


def _judges(args: argparse.Namespace, settings: JudgeConfig) -> dict:
    """The judge of attacks and the judge of over-refusal, by kind; None for a kind that these settings cannot judge."""
    from curricula.eval.judges.registry import load_judge

    world = args.world or next(
        (root for root in (args.folder / "world", local_root()) if root and (root / "world.json").exists()), None
    )
    judges: dict = {}
    refused: UsageError | None = None
    for kind in JUDGED:
        try:
            judges[kind] = load_judge(settings, kind, world)
        except UsageError as error:
            judges[kind], refused = None, error
    if refused and not any(judges.values()):
        raise refused
    return judges


def _print(comparisons: list[Comparison], console: Console) -> None:
    """Print the rates by each judge, their agreement, and what to know about either."""
    rates = [(one, rate) for one in comparisons for rate in (one.first, one.second) if rate is not None]
    letters = dict(zip(dict.fromkeys(rate.judge for _, rate in rates), string.ascii_uppercase))
    console.print(Text("\n".join(f"{letter}: {judge}" for judge, letter in letters.items())), soft_wrap=True)
    spans = ("rate", "95%\ninterval", "corrected", "95%\ninterval")
    table = new_table(
        "Rates by each judge, in percent of the answers with a verdict",
        *("answers of", "judge", *spans, "verdicts", "un-\nparsed"),
        left=2,
    )
    corrections: list[tuple[str, float | None, float | None]] = []
    for one, rate in rates:
        corrected, letter = rate.corrected, letters[rate.judge]
        cells = [percent(rate.rate), interval(rate.low, rate.high), percent(corrected.rate if corrected else None)]
        cells += [interval(corrected.low, corrected.high) if corrected else "–", f"{rate.answers:,}", f"{rate.unparsed:,}"]
        table.add_row(Text("" if one.first and rate is one.second else one.where), letter, *cells)
        if corrected:
            corrections.append((f"{one.where} by judge {letter}", corrected.low, corrected.high))
    console.print(table)
    if words := vague(corrections):
        say(console, words, "yellow")
    if any(one.agreement for one in comparisons):
        console.print(_agreement_table(comparisons))
    if words := caveats(*(", ".join(rate.judge for one, rate in rates if one.kind == kind) for kind in JUDGED)):
        say(console, words, "dim")
    for source in sorted({one.accuracy.source for one in comparisons if one.accuracy}):
        say(console, f"Corrected by the judge's sensitivity and specificity on {source}, as far as they hold here.")


def _agreement_table(comparisons: list[Comparison]) -> Table:
    table = new_table("Agreement", "answers of", "verdicts\nof both", "agree", "Cohen's\nkappa", "95%\ninterval")
    for one in comparisons:
        if agreement := one.agreement:
            kappa = "–" if agreement.kappa is None else fixed(agreement.kappa, 2)
            ends = (agreement.low, agreement.high)
            span = " to ".join(fixed(end, 2) for end in ends if end is not None) or "–"
            table.add_row(Text(one.where), f"{agreement.answers:,}", percent(agreement.share), kappa, span)
    return table
