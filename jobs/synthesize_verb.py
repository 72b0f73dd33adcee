"""The verb `curricula data synthesize`: score web text, or write rephrasings, refusals and moral education from it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.prompt import Confirm
from rich.text import Text

from curriculum.errors import UsageError
from curriculum.sources import local_root
from curriculum.synthesis.inputs import Input, TableInput, open_dataset_input
from curriculum.synthesis.kinds import KINDS
from curriculum.synthesis.plan import (
    CHARACTERS_PER_TOKEN,
    Estimate,
    Estimator,
    Place,
    Prices,
    Settings,
    parse_part,
    slurm_part,
)

if TYPE_CHECKING:  # at run time only where it is needed: it brings the openai package, which takes a while
    from curriculum.synthesis.run import Asking, Part, Summary

PIECE_CHARACTERS = 8000
_LINE_EVERY_S = 60.0  # where there is no terminal
EXAMPLE = (
    "curricula data synthesize score --dataset fineweb-edu --out /scratch/scored --base-url http://node7:8000/v1 "
    "--model Qwen/Qwen2.5-7B-Instruct"
)


def add_parser(kinds: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Add the verb to the words after `curricula data`."""
    what = "score web text for safety, or make safe rephrasings, refusals and moral education from it"
    parser = kinds.add_parser(
        "synthesize",
        help=what,
        description=what[0].upper() + what[1:] + ", with any server that speaks OpenAI's API. The same command goes on "
        "after an interruption and asks nothing twice. The key is read from OPENAI_API_KEY alone.",
        epilog=f"example:\n  {EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=synthesize)
    parser.add_argument("kind", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))

    source = parser.add_argument_group("what is read")
    which = source.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", metavar="NAME", help="a dataset by its short name, such as fineweb-annotated")
    which.add_argument(
        "--input", type=Path, metavar="STEM", help="any table (a file or folder) with columns id and text"
    )
    source.add_argument("--data", type=Path, metavar="ROOT", help="the data folder (default: CURRICULA_DATA)")
    source.add_argument("--scores", metavar="N,...", help="only these scores of the dataset, such as 4,5")
    source.add_argument("--limit", type=int, metavar="N", help="no more than the first N documents")

    output = parser.add_argument_group("what is written")
    output.add_argument("--out", type=Path, required=True, help="a folder, the same for all parts")
    output.add_argument("--name", help="the table's folder in OUT (default: train; scores go to score_0 to score_5)")
    output.add_argument(
        "--part", metavar="I/N", help="part I (from 0) of N (default: this task of the Slurm array, else 0/1)"
    )
    output.add_argument("--retry-dead", action="store_true", help="ask again about dead letters")
    output.add_argument("--json", action="store_true", help="print JSON for scripts")

    server = parser.add_argument_group("what is asked")
    server.add_argument("--base-url", metavar="URL", help="the server's address (default: OPENAI_BASE_URL)")
    server.add_argument("--model", required=True, help="the model's name on the server")
    server.add_argument("--temperature", type=float, help="default: 0 for scores, else 0.7")
    server.add_argument("--max-tokens", type=int, help="of a reply (default: 256 for scores, 2048 or 4096 else)")
    server.add_argument("--seed", type=int, default=0, help="another seed, other styles and replies (default: 0)")
    server.add_argument("--no-seed", action="store_true", help="for servers that refuse requests with a seed")
    server.add_argument(
        "--piece-characters",
        type=int,
        default=PIECE_CHARACTERS,
        metavar="N",
        help="longer documents are scored in pieces; of others only the first piece is used (default: %(default)s)",
    )
    server.add_argument("--classifier", metavar="WHERE", help="a second judge of scores: a folder, or a vLLM address")
    server.add_argument(
        "--classifier-model", metavar="NAME", help="its name on that server (default: the published classifier)"
    )

    pace = parser.add_argument_group("how")
    pace.add_argument("--concurrency", type=int, default=64, help="requests at once (default: %(default)s)")
    pace.add_argument("--timeout", type=float, default=300.0, help="seconds for a reply (default: %(default)g)")
    pace.add_argument("--retries", type=int, default=8, help="of a request that got no reply (default: %(default)s)")
    pace.add_argument("--tries", type=int, default=4, help="for a readable reply (default: %(default)s)")
    pace.add_argument("--dry-run", action="store_true", help="print the estimate and one request, ask nothing")
    pace.add_argument("--price-in", type=float, metavar="DOLLARS", help="per million tokens read")
    pace.add_argument("--price-out", type=float, metavar="DOLLARS", help="per million tokens written")
    pace.add_argument(
        "--max-cost", type=float, default=5.0, metavar="DOLLARS", help="ask before spending more (default: %(default)g)"
    )
    pace.add_argument("--yes", action="store_true", help="spend whatever the estimate says")
    return parser


def synthesize(words: argparse.Namespace) -> int:
    from curriculum.synthesis.run import run_part

    _check(words)
    part = _part(words)
    left = len(part.left(words.retry_dead))
    estimator = Estimator.sample(part.settings, part.documents, part.number, _prices(words))
    now, all_parts = estimator.of(left), estimator.of(part.settings.documents)
    if words.dry_run:
        _print_dry_run(words, part, now, all_parts)
        return 0
    asking = _asking(words)
    _print_estimate(Console(stderr=True, highlight=False), part, now, all_parts)
    _confirm(words, now, all_parts)
    with _Display(part.name) as display:
        summary = run_part(part, asking, words.retry_dead, display)
    _print_summary(words, summary)
    return 0


def _check(words: argparse.Namespace) -> None:
    judges = KINDS[words.kind].judges
    for option, value, lowest, highest in (
        ("--limit", words.limit, 1, None),
        ("--concurrency", words.concurrency, 1, 1000),
        ("--tries", words.tries, 1, 100),
        ("--retries", words.retries, 0, 1000),
        ("--timeout", words.timeout, 0.001, 86400),
        ("--max-tokens", words.max_tokens, 1, None),
        ("--temperature", words.temperature, 0, 2),
        ("--piece-characters", words.piece_characters, 100, None),
        ("--price-in", words.price_in, 0, None),
        ("--price-out", words.price_out, 0, None),
        ("--max-cost", words.max_cost, 0, None),
    ):
        if value is not None and not (lowest <= value and (highest is None or value <= highest)):
            upper = "or more" if highest is None else f"to {highest}"
            raise UsageError(f"{option} {value}: give {lowest} {upper}")
    if (words.price_in is None) != (words.price_out is None):
        raise UsageError("--price-in and --price-out: give both, or neither")
    if words.classifier and not judges:
        raise UsageError(f"--classifier {words.classifier}: only for the kind score, not {words.kind}")
    if words.classifier_model and not _is_address(words.classifier):
        raise UsageError(f"--classifier-model {words.classifier_model}: needs --classifier with a server's address")
    if words.name is not None and judges:
        raise UsageError(f"--name {words.name}: scores go to score_0 to score_5; leave it out")
    if words.name is not None and (Path(words.name).name != words.name or words.name in ("", ".", "..", "log")):
        raise UsageError(f"--name {words.name!r}: not the name of a folder in OUT; give one such as train")
    if words.scores and not words.dataset:
        raise UsageError(f"--scores {words.scores}: chooses parts of a --dataset; leave it out")


def _is_address(where: str | None) -> bool:
    return where is not None and "://" in where


def _part(words: argparse.Namespace) -> Part:
    from curriculum.synthesis.run import Part

    number, count = parse_part(words.part) if words.part else slurm_part(os.environ)
    scores = _scores(words.scores)
    documents = _input(words, scores)
    kind = KINDS[words.kind]
    classifier = ""
    if words.classifier:
        classifier = (
            _classifier_model(words) if _is_address(words.classifier) else str(Path(words.classifier).resolve())
        )
    settings = Settings(
        kind=kind.name,
        input=documents.name,
        scores=scores,
        documents=len(documents),
        parts=count,
        model=words.model,
        prompt=kind.prompt.version,
        temperature=kind.temperature if words.temperature is None else words.temperature,
        max_tokens=words.max_tokens or kind.max_tokens,
        piece_characters=words.piece_characters,
        seed=words.seed,
        classifier=classifier,
    )
    name = "score" if kind.judges else words.name or "train"
    return Part(settings, Place(words.out, name), number, documents, sends_seed=not words.no_seed)


def _scores(words: str | None) -> tuple[int, ...]:
    if words is None:
        return ()
    if not all(score.isdecimal() for score in words.split(",")):
        raise UsageError(f"--scores {words}: give scores by commas, such as 4,5")
    return tuple(sorted({int(score) for score in words.split(",")}))


def _input(words: argparse.Namespace, scores: tuple[int, ...]) -> Input:
    if words.input:
        return TableInput.open(words.input, words.limit)
    root = words.data or local_root()
    if root is None:
        raise UsageError(f"--dataset {words.dataset}: name its data folder with --data, or set CURRICULA_DATA")
    return open_dataset_input(words.dataset, root, scores, words.limit)


def _classifier_model(words: argparse.Namespace) -> str:
    from curriculum.synthesis.classifier import PUBLISHED

    return words.classifier_model or PUBLISHED


def _prices(words: argparse.Namespace) -> Prices | None:
    return None if words.price_in is None else Prices(words.price_in, words.price_out)


def _asking(words: argparse.Namespace) -> Asking:
    from curriculum.synthesis.classifier import Classifier, LocalClassifier, ServedClassifier
    from curriculum.synthesis.endpoint import Endpoint
    from curriculum.synthesis.run import Asking

    url = words.base_url or os.environ.get("OPENAI_BASE_URL")
    if not url:
        raise UsageError("--base-url: name the server, such as http://node7:8000/v1, or set OPENAI_BASE_URL")
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    endpoint = Endpoint(url, key, words.timeout, words.retries, words.tries)
    classifier: Classifier | None = None
    if _is_address(words.classifier):
        address = words.classifier.rstrip("/").removesuffix("/classify")
        served = Endpoint(address, "", words.timeout, words.retries, words.tries)
        classifier = ServedClassifier(served, _classifier_model(words))
    elif words.classifier:
        classifier = LocalClassifier(Path(words.classifier))
    return Asking(endpoint, classifier, words.concurrency, words.tries)


def _confirm(words: argparse.Namespace, now: Estimate, all_parts: Estimate) -> None:
    """Ask about the cost of all parts together: the tasks of an array cannot ask."""
    if words.yes or not now.documents or all_parts.dollars is None or all_parts.dollars <= words.max_cost:
        return
    cost = f"about ${all_parts.dollars:,.2f} for all parts, more than --max-cost {words.max_cost:g}"
    if not sys.stdin.isatty():
        raise UsageError(f"{cost}; pass --yes to spend it, or raise --max-cost")
    if not Confirm.ask(f"This costs {cost}. Go on?", default=False, console=Console(stderr=True)):
        raise UsageError("nothing was asked and nothing spent; --limit and --scores make it less")


def _said(estimate: Estimate) -> str:
    cost = "" if estimate.dollars is None else f", about ${estimate.dollars:,.2f}"
    return (
        f"{estimate.documents:,} documents, {estimate.requests:,} requests, about {estimate.tokens_in:,} tokens in "
        f"and {estimate.tokens_out:,} out{cost}"
    )


def _print_estimate(console: Console, part: Part, now: Estimate, all_parts: Estimate) -> None:
    lines = [f"{part.name}: left to ask {_said(now)}"]
    if part.settings.parts > 1:
        lines.append(f"all {part.settings.parts} parts: {_said(all_parts)}")
    lines.append(
        f"(from the first documents of the part: {CHARACTERS_PER_TOKEN} characters a token in, "
        f"{min(part.settings.how.expected_tokens, part.settings.max_tokens):,} tokens a reply)"
    )
    console.print(Text("\n".join(lines)), soft_wrap=True)


def _print_dry_run(words: argparse.Namespace, part: Part, now: Estimate, all_parts: Estimate) -> None:
    numbers = part.settings.numbers(part.number)
    document = next((each for each in part.documents.read(numbers.start, numbers.stop) if each.text.strip()), None)
    request = part.first_request(document) if document else None
    if words.json:
        print(json.dumps({"left": asdict(now), "all": asdict(all_parts), "request": request}, indent=1))
        return
    _print_estimate(Console(highlight=False), part, now, all_parts)
    print(json.dumps(request, indent=1))  # in ASCII: a document may hold what a terminal obeys


def _print_summary(words: argparse.Namespace, summary: Summary) -> None:
    if words.json:
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


class _Display:
    """How far a part is, on stderr: a live line on a terminal, else a line a minute. A `curriculum.progress.Progress`."""

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

    def __enter__(self) -> _Display:
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
