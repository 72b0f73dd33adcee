"""The tables that `curricula eval` prints: one model's metrics, with their intervals, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from curricula.eval.judges.caveats import COARSE, caveats, vague
from curricula.terminal import fixed, say


def percent(value: float | None) -> str:
    """A share in percent, without the percent sign: the titles of the tables name the unit."""
    return "–" if value is None else fixed(value, 1, times=100)


def interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{percent(low)}–{percent(high)}"


def new_table(title: str, *columns: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text, and the others numbers."""
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", overflow="fold")
    return table


def print_metrics(metrics: Mapping[str, Sequence[Any]], console: Console) -> None:
    tables = {"attacks": _attacks, "overrefusal": _overrefusals, "pruning": _pruning, "worst_case": _strengths}
    for name, table in {**tables, "capability": _capability, "probes": _probes}.items():
        if metrics.get(name):
            console.print(table(metrics[name]))
    corrected = (
        (f"{entry.decoder} on {_named(entry)}", entry.corrected_low, entry.corrected_high) for entry in metrics["attacks"]
    )
    if words := vague(corrected):
        say(console, words, "yellow")
    if words := caveats(*(", ".join(entry.judges for entry in metrics[kind]) for kind in ("attacks", "overrefusal"))):
        say(console, words, "dim")


def _named(entry: Any) -> str:
    return "all, mean" if entry.benchmark == "all" else entry.benchmark


def _attacks(metrics: Sequence[Any]) -> Table:
    judges = ", ".join(sorted({entry.judges for entry in metrics}))
    several, corrected = any(entry.samples > 1 for entry in metrics), any(entry.corrected is not None for entry in metrics)
    columns = ["decoder", "benchmark", "n", "ASR", "95%\ninterval"]
    columns += ["std over\nsamples", "any\nsample", "flips"] if several else []
    columns += ["corrected", "95%\ninterval"] if corrected else []
    n = "n prompts × samples" if several else "n prompts"
    title = f"Attack success rate in percent, {n}. Judge and version: {judges}"
    table = new_table(title, *columns, "un-\nparsed", "mis-\nsing", left=2)
    if several:
        table.caption = Text("ASR is ASR@1; for best of N, ASR@N", justify="left")
    for entry in metrics:
        asked = f"{entry.prompts} × {entry.samples}" if several else str(entry.prompts)
        row = [entry.decoder, _named(entry), asked, percent(entry.rate), interval(entry.low, entry.high)]
        row += [percent(entry.std), percent(entry.any_of), percent(entry.flip_share)] if several else []
        row += [percent(entry.corrected), interval(entry.corrected_low, entry.corrected_high)] if corrected else []
        table.add_row(*row, str(entry.unparsed), str(entry.missing))
    return table


def _pruning(metrics: Sequence[Any]) -> Table:
    columns = ["decoder", "benchmark", "answers", "log-p", "lost to\npruning", "likeliest\ndropped"]
    table = new_table("SafeBeam's pruning: nats per answer, and percent of the steps", *columns, left=2)
    for entry in metrics:
        figures = [fixed(entry.logp, 1), fixed(entry.logp_lost, 1), percent(entry.likeliest_dropped)]
        table.add_row(entry.decoder, entry.benchmark, str(entry.answers), *figures)
    return table


def _overrefusals(metrics: Sequence[Any]) -> Table:
    judges = ", ".join(sorted({entry.judges for entry in metrics}))
    names = ["help-\nful", "un-\nhelpful", "partly\nrefused", "re-\nfused", "short-\ncircuit"]
    table = new_table(
        f"Answers to benign requests in percent, n prompts. Judge and version: {judges}",
        *("decoder", "requests", "n", "over-\nrefusal", "95%\ninterval", *names, "un-\nparsed"),
        left=2,
    )
    if not all(entry.tells_helpful for entry in metrics):
        table.caption = Text(COARSE, justify="left")
    for entry in metrics:
        shares = [percent(share) for share in entry.shares.values()] or ["–"] * len(names)
        rate = [percent(entry.rate), interval(entry.low, entry.high)]
        table.add_row(entry.decoder, _named(entry), str(entry.prompts), *rate, *shares, str(entry.unparsed))
    return table


def _capability(metrics: Sequence[Any]) -> Table:
    columns = ["task", "metric", "examples\nbefore", "n", "right", "standard\nerror", "95%\ninterval"]
    cut = any(entry.cut for entry in metrics)
    columns += ["lost their\nbeginning"] if cut else []
    table = new_table("Capability in percent of n questions (lm_eval)", *columns, left=2)
    for entry in metrics:
        numbers = [percent(entry.value), percent(entry.error), interval(entry.low, entry.high)]
        numbers += [f"{entry.cut:,}"] if cut else []
        table.add_row(_named(entry), entry.metric, entry.shots, f"{entry.questions:,}", *numbers)
    return table


def _strengths(metrics: Sequence[Any]) -> Table:
    from curricula.eval.analysis.worst_case import WORST  # imports scipy, which takes a while

    columns = ("decoder", "attack", "n", "broken", "95%\ninterval")
    table = new_table("Requests with any harmful answer, in percent; n: requests tried with every attack", *columns, left=2)
    for entry in metrics:
        attack = {entry.decoder: "none", WORST: "worst case over attacks"}.get(entry.attack, entry.attack)
        broken = entry.broken
        table.add_row(entry.decoder, attack, str(entry.requests), percent(broken.value), interval(broken.low, broken.high))
    if left_out := sorted({f"{entry.left_out} under {entry.decoder}" for entry in metrics if entry.left_out}):
        table.caption = Text(f"Left out for lack of verdicts: {'; '.join(left_out)}", justify="left")
    return table


def _probes(metrics: Sequence[Any]) -> Table:
    columns = {"test AUC": "auc", "from": "low", "to": "high", "std": "std", "text length\nalone": "length_auc"}
    columns |= {"words\nalone": "words_auc", "before\ntraining": "untrained_auc"}
    shown = {title: name for title, name in columns.items() if any(getattr(entry, name) is not None for entry in metrics)}
    table = new_table("Linear probes, safe against unsafe text, 95% interval", "layer", *shown)
    for entry in metrics:
        values = (getattr(entry, name) for name in shown.values())
        table.add_row(entry.layer, *("–" if value is None else fixed(value, 3) for value in values))
    return table
