"""The verb `curricula data synthesize`: score web text, or write rephrasings, refusals and moral education from it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.prompt import Confirm

from curricula.curriculum.sources.registry import local_root
from curricula.curriculum.synthesis.files import Log
from curricula.curriculum.synthesis.inputs import Input, TableInput, open_dataset_input
from curricula.curriculum.synthesis.kinds import KINDS
from curricula.curriculum.synthesis.shard import (
    Estimate,
    Estimator,
    OutputFolder,
    Prices,
    SynthesisSettings,
    SynthesisShard,
    parse_shard,
    slurm_shard,
)
from curricula.errors import UsageError
from curricula.jobs.cli.help_text import HelpFormatter
from curricula.jobs.cli.synthesize_display import Display, print_dry_run, print_estimate, print_summary

if TYPE_CHECKING:  # at run time only where it is needed: it brings the openai package, which takes a while
    from curricula.curriculum.synthesis.run import Servers

PIECE_CHARACTERS = 8000
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
        formatter_class=HelpFormatter,
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
    from curricula.curriculum.synthesis.run import run_shard

    _check(words)
    shard = _shard(words)
    shard.folder.check(shard.settings)  # first, or a log with other settings would look damaged
    left = len(Log.for_shard(shard).read().left(words.retry_dead))
    estimator = Estimator.sample(shard, _prices(words))
    now, all_parts = estimator.estimate(left), estimator.estimate(shard.settings.documents)
    if words.dry_run:
        print_dry_run(shard, now, all_parts, words.json)
        return 0
    servers = _servers(words)
    print_estimate(Console(stderr=True, highlight=False), shard, now, all_parts)
    _confirm(words, now, all_parts)
    with Display(shard.name) as display:
        summary = run_shard(shard, servers, words.retry_dead, display)
    print_summary(summary, words.json)
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


def _shard(words: argparse.Namespace) -> SynthesisShard:
    number, count = parse_shard(words.part) if words.part else slurm_shard(os.environ)
    scores = _scores(words.scores)
    documents = _input(words, scores)
    kind = KINDS[words.kind]
    classifier = ""
    if words.classifier:
        classifier = (
            _classifier_model(words) if _is_address(words.classifier) else str(Path(words.classifier).resolve())
        )
    settings = SynthesisSettings(
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
    return SynthesisShard(settings, OutputFolder(words.out, name), number, documents, sends_seed=not words.no_seed)


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
    from curricula.curriculum.synthesis.classifier import PUBLISHED

    return words.classifier_model or PUBLISHED


def _prices(words: argparse.Namespace) -> Prices | None:
    return None if words.price_in is None else Prices(words.price_in, words.price_out)


def _servers(words: argparse.Namespace) -> Servers:
    from curricula.curriculum.synthesis.classifier import Classifier, LocalClassifier, ServedClassifier
    from curricula.curriculum.synthesis.run import Servers
    from curricula.endpoint import Endpoint

    url = words.base_url or os.environ.get("OPENAI_BASE_URL")
    if not url:
        raise UsageError("--base-url: name the server, such as http://node7:8000/v1, or set OPENAI_BASE_URL")
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    endpoint = Endpoint(url, key, words.timeout, words.retries, words.tries, words.concurrency)
    classifier: Classifier | None = None
    if _is_address(words.classifier):
        address = words.classifier.rstrip("/").removesuffix("/classify")
        served = Endpoint(address, "", words.timeout, words.retries, words.tries, words.concurrency)
        classifier = ServedClassifier(served, _classifier_model(words))
    elif words.classifier:
        classifier = LocalClassifier(Path(words.classifier))
    return Servers(endpoint, classifier, words.concurrency, words.tries)


def _confirm(words: argparse.Namespace, now: Estimate, all_parts: Estimate) -> None:
    """Ask about the cost of all parts together: the tasks of an array cannot ask."""
    if words.yes or not now.documents or all_parts.dollars is None or all_parts.dollars <= words.max_cost:
        return
    cost = f"about ${all_parts.dollars:,.2f} for all parts, more than --max-cost {words.max_cost:g}"
    if not sys.stdin.isatty():
        raise UsageError(f"{cost}; pass --yes to spend it, or raise --max-cost")
    if not Confirm.ask(f"This costs {cost}. Go on?", default=False, console=Console(stderr=True)):
        raise UsageError("nothing was asked and nothing spent; --limit and --scores make it less")
