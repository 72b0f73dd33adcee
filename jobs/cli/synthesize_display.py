"""What `curricula data synthesize` prints: the estimate, the dry run, how far a part is, and what it came to."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from curricula.asking import CHARACTERS_PER_TOKEN
from curricula.curriculum.synthesis.shard import Estimate, SynthesisShard

if TYPE_CHECKING:  # at run time it would bring the openai package, which takes a while
    from curricula.curriculum.synthesis.run import Summary

_LINE_EVERY_S = 60.0  # where there is no terminal


def _said(estimate: Estimate) -> str:
    cost = "" if estimate.dollars is None else f", about ${estimate.dollars:,.2f}"
    return (
        f"{estimate.documents:,} documents, {estimate.requests:,} requests, about {estimate.tokens_in:,} tokens in "
        f"and {estimate.tokens_out:,} out{cost}"
    )


def print_estimate(console: Console, part: SynthesisShard, now: Estimate, all_parts: Estimate) -> None:
    lines = [f"{part.name}: left to ask {_said(now)}"]
    if part.settings.parts > 1:
        lines.append(f"all {part.settings.parts} parts: {_said(all_parts)}")
    lines.append(
        f"(from the first documents of the part: {CHARACTERS_PER_TOKEN} characters a token in, "
        f"{min(part.settings.how.expected_tokens, part.settings.max_tokens):,} tokens a reply)"
    )
    console.print(Text("\n".join(lines)), soft_wrap=True)


def print_dry_run(part: SynthesisShard, now: Estimate, all_parts: Estimate, as_json: bool) -> None:
    document = next((each for each in part.read() if each.text.strip()), None)
    request = part.first_request(document) if document else None
    if as_json:
        print(json.dumps({"left": asdict(now), "all": asdict(all_parts), "request": request}, indent=1))
        return
    print_estimate(Console(highlight=False), part, now, all_parts)
    print(json.dumps(request, indent=1))  # in ASCII: a document may hold what a terminal obeys


def print_summary(summary: Summary, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(summary), indent=1))
        return
    lines = [
        f"part {summary.part} of {summary.parts}: {summary.done:,} of {summary.documents:,} documents done, "
        f"{summary.dead:,} dead; {summary.parts_complete} of {summary.parts} parts have their tables",
        f"asked about {summary.asked:,} now: {summary.requests:,} requests, {summary.retries:,} retries, "
        f"{summary.tokens_in:,} tokens in, {summary.tokens_out:,} out",
        *summary.tables,
    ]
    if summary.dead_letters:
        lines.append(f"dead letters: {summary.dead_letters} (asked again with --retry-dead)")
    Console(highlight=False).print(Text("\n".join(lines)), soft_wrap=True)


class Display:
    """How far a part is, on stderr: a live line on a terminal, else a line a minute. A `curricula.progress.Progress`."""

    def __init__(self, name: str):
        self.console = Console(stderr=True, highlight=False)
        self.line = Progress(
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.line.add_task(name, total=None, figures="")
        self.name, self.started = name, time.monotonic()
        self._next_line = self.started + _LINE_EVERY_S

    def __enter__(self) -> Display:
        self.line.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.line.stop()

    def __call__(self, done: int, total: int, **figures: Any) -> None:
        now = time.monotonic()
        seconds = max(now - self.started, 1e-9)
        said = (
            f"{done / seconds:,.1f} docs/s, {figures['tokens'] / seconds:,.0f} tokens/s, "
            f"{figures['retries']:,} retries, {figures['dead']:,} dead"
        )
        self.line.update(self.task, completed=done, total=total, figures=said)
        if not self.console.is_terminal and now >= self._next_line:
            self._next_line = now + _LINE_EVERY_S
            left = f", {(total - done) / (done / seconds) / 60:,.0f} min left" if done else ""
            self.console.print(Text(f"{self.name}: {done:,}/{total:,}, {said}{left}"), soft_wrap=True)
