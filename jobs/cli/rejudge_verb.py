"""The verb `curricula eval rejudge`: stored answers judged by another judge; agreement, and what its errors do to a rate."""

from __future__ import annotations

import argparse
import json
import string
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from curricula.curriculum.sources.registry import local_root
from curricula.durable import exclusive_lock
from curricula.errors import UsageError
from curricula.eval.judges.settings import JudgeConfig
from curricula.jobs.cli.eval_display import Bars, interval, new_table, no_other_bars, percent, quiet_libraries
from curricula.jobs.cli.help_text import HelpFormatter
from curricula.jobs.cli.judge_options import add_judge_options, confirm_cost, judge_from, look_at_server

EXAMPLE = (
    "curricula eval rejudge runs/demo --judge harmbench --judge-url http://node7:8000/v1\n"
    "  curricula eval rejudge evaluations/instruct --judge llm --judge-model gpt-6-luna --judge-url https://api.openai.com/v1"
)


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "rejudge",
        help="judge stored answers with another judge",
        description="Judge stored answers with another judge. Answers are not generated anew and not rewritten; verdicts are "
        "added beside them, and what this judge has judged already is not asked again. Prints how the two judges agree "
        "(Cohen's kappa) and, where the judge's errors are known, a corrected rate (Rogan and Gladen).",
        epilog=f"examples:\n  {EXAMPLE}",
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(verb=rejudge)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run folder, or the OUT of `curricula eval`")
    parser.add_argument("--by-model", action="store_true", help="a row for each model, not for all together")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="people's labels (columns key, label: harmful or safe) to correct by",
    )
    parser.add_argument("--world", type=Path, help="the fictional world's folder (default: FOLDER/world)")
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    add_judge_options(parser, required=True)


def rejudge(words: argparse.Namespace) -> int:
    from curricula.eval.judging.rejudge import Rejudging, read_labels, stored_answers

    if not words.folder.is_dir():
        raise UsageError(f"{words.folder}: no such folder; name a run folder, or the OUT folder of a `curricula eval`")
    no_other_bars()
    settings = judge_from(words)
    paths = stored_answers(words.folder)
    labels = read_labels(words.labels) if words.labels else {}
    judges = _judges(words, settings)
    console = Console(stderr=True, highlight=False)
    look_at_server(settings, console)
    with exclusive_lock(words.folder / "rejudge.lock"), Bars(console) as bars:
        if settings.on_this_machine:
            quiet_libraries()
        work = Rejudging(paths, judges, words.retry_unparsed)
        if words.labels:
            work.require_labels(labels, words.labels)
        confirm_cost(words, work.estimates(), console)
        work.judge(bars.line(f"judge {settings.name}"))
    found = work.comparisons(words.by_model, labels)
    if words.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return 0
    _print(found, Console(highlight=False))
    if work.left_alone:
        print(
            f"{work.left_alone:,} answers were left alone: judge {settings.name} has no words for answers of their kind."
        )
    return 0


def _judges(words: argparse.Namespace, settings: JudgeConfig) -> dict:
    """The judge of attacks and that of over-refusal; None for one that the judge cannot be."""
    from curricula.eval.judges.registry import load_judge

    world = words.world or next(
        (root for root in (words.folder / "world", local_root()) if root and (root / "world.json").exists()), None
    )
    judges: dict = {}
    refused: UsageError | None = None
    for kind in ("attack", "overrefusal"):
        try:
            judges[kind] = load_judge(settings, kind, world)
        except UsageError as error:
            judges[kind], refused = None, error
    if refused and not any(judges.values()):
        raise refused
    return judges


def _print(found: list, console: Console) -> None:
    rates = [rate for one in found for rate in (one.first, one.second) if rate is not None]
    letters = dict(zip(dict.fromkeys(rate.judge for rate in rates), string.ascii_uppercase))
    console.print(Text("\n".join(f"{letter}: {judge}" for judge, letter in letters.items())), soft_wrap=True)
    spans = ("rate", "95%\ninterval", "corrected", "95%\ninterval")
    table = new_table(
        "Rates by each judge, in percent of the answers with a verdict",
        *("answers of", "judge", *spans, "verdicts", "un-\nparsed"),
        words=2,
    )
    for one in found:
        where = one.where
        for rate in (one.first, one.second):
            if rate is not None:
                true = rate.corrected
                cells = [percent(rate.rate), interval(rate.low, rate.high), percent(true.rate if true else None)]
                cells += [interval(true.low, true.high) if true else "–", f"{rate.answers:,}", f"{rate.unparsed:,}"]
                table.add_row(Text(where), letters[rate.judge], *cells)
                where = ""
    console.print(table)
    agreed = new_table("Agreement", "answers of", "verdicts\nof both", "agree", "Cohen's\nkappa", "95%\ninterval")
    for one in found:
        if one.agreement:
            of = one.agreement
            kappa = "–" if of.kappa is None else f"{of.kappa:.2f}"
            span = "–" if of.low is None else f"{of.low:.2f} to {of.high:.2f}"
            agreed.add_row(Text(one.where), f"{of.answers:,}", percent(of.share), kappa, span)
    if agreed.row_count:
        console.print(agreed)
    for source in sorted({one.accuracy.source for one in found if one.accuracy}):
        console.print(
            f"Corrected by the judge's sensitivity and specificity on {source}, as far as they hold here.",
            soft_wrap=True,
        )
