"""The verb `curricula data synthesize`: score web text, or write rephrasings, refusals and moral education from it."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from curricula.asking import CHARACTERS_PER_TOKEN
from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.sources.registry import local_root
from curricula.curriculum.synthesis.files import Log
from curricula.curriculum.synthesis.kinds import KINDS, SCORES, pieces
from curricula.curriculum.synthesis.shard import (
    PUBLISHED_CLASSIFIER,
    Estimate,
    SynthesisSettings,
    SynthesisShard,
    estimates,
    open_dataset_input,
    open_table_input,
    parse_shard,
    slurm_shard,
)
from curricula.errors import UsageError
from curricula.eval.judges.settings import OURS
from curricula.jobs.cli.bars import Bars
from curricula.jobs.cli.options import add_costs, add_json_flag, add_names, add_verb, at_least, confirm_spending, require_with
from curricula.terminal import json_text, say

if TYPE_CHECKING:  # it imports the openai package, which takes a while
    from curricula.endpoint import Endpoint

PIECE_CHARACTERS = 8000
"""Default limit of the characters of a document in one request."""


def add_parser(verbs: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = add_verb(
        verbs,
        "synthesize",
        "score web text for safety, or make safe rephrasings, refusals and moral education from it",
        "curricula data synthesize score --dataset fineweb-edu --out /scratch/scored \\\n"
        "      --base-url http://node7:8000/v1 --model Qwen/Qwen2.5-7B-Instruct",
        call="synthesize:synthesize",
        details="Works with any server that speaks OpenAI's API. The same command continues after an interruption and asks "
        "nothing twice. The key is read from OPENAI_API_KEY only.",
    )
    parser.add_argument("kind", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))

    source = parser.add_argument_group("input")
    which = source.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", metavar="NAME", help="a dataset by its short name, such as fineweb-annotated")
    which.add_argument("--input", type=Path, metavar="STEM", help="any table (a file or folder) with columns id and text")
    source.add_argument("--data", type=Path, metavar="ROOT", help="the data folder (default: CURRICULA_DATA)")
    add_names(source, "--scores", "N", "only these scores, such as 4,5")
    source.add_argument(
        "--limit", type=at_least(1), metavar="N", help="at most N documents: the first ones, of each part in proportion"
    )

    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, required=True, help="a folder, the same for all parts")
    output.add_argument("--name", help="the table's folder in OUT (default: train; scores go to score_0 to score_5)")
    output.add_argument(
        "--part", type=parse_shard, metavar="I/N", help="part I (from 0) of N (default: this array task, else 0/1)"
    )
    output.add_argument("--retry-dead", action="store_true", help="retry documents that failed permanently")
    add_json_flag(parser)

    server = parser.add_argument_group("the server and its replies")
    server.add_argument("--base-url", metavar="URL", help="the server's address (default: OPENAI_BASE_URL)")
    server.add_argument("--model", required=True, help="the model's name on the server")
    server.add_argument("--temperature", type=at_least(0.0, 2), metavar="T", help="default: 0 for scores, else 0.7")
    server.add_argument(
        "--max-tokens", type=at_least(1), metavar="N", help="of a reply (default: 256 for scores, otherwise 2048 or 4096)"
    )
    server.add_argument("--seed", type=int, default=0, metavar="N", help="random seed; changes styles and replies (default: 0)")
    server.add_argument("--no-seed", action="store_true", help="omit the seed, for servers that reject it")
    server.add_argument(
        "--request",
        type=request_fields,
        metavar="JSON",
        help='fields merged into each request, such as {"max_tokens": null}; null removes a field',
    )
    server.add_argument(
        "--piece-characters",
        type=at_least(100),
        default=PIECE_CHARACTERS,
        metavar="N",
        help="score longer documents in pieces of N characters; other kinds use only the first piece (default: %(default)s)",
    )
    server.add_argument("--classifier", metavar="URL", help="a second judge of scores: a classifier that vLLM serves")
    server.add_argument("--classifier-model", metavar="NAME", help="its name on that server (default: the published one)")

    pace = parser.add_argument_group("pace and cost")
    pace.add_argument(
        "--concurrency", type=at_least(1, 1000), default=64, metavar="N", help="requests at once (default: %(default)s)"
    )
    pace.add_argument(
        "--timeout", type=at_least(0.001, 86400), default=300.0, metavar="S", help="seconds for a reply (default: %(default)g)"
    )
    pace.add_argument(
        "--retries", type=at_least(0, 1000), default=8, metavar="N", help="retries of a request (default: %(default)s)"
    )
    pace.add_argument(
        "--tries", type=at_least(1, 100), default=4, metavar="N", help="attempts at a readable reply (default: %(default)s)"
    )
    pace.add_argument("--dry-run", action="store_true", help="print the estimate and one request; send nothing")
    pace.add_argument("--price-in", type=at_least(0.0), metavar="DOLLARS", help="per million tokens read")
    pace.add_argument("--price-out", type=at_least(0.0), metavar="DOLLARS", help="per million tokens written")
    add_costs(pace)
    return parser


def synthesize(args: argparse.Namespace) -> int:
    from curricula.curriculum.synthesis.run import run_shard

    _check(args)
    shard = _shard(args)
    shard.check_settings()  # first, or a log by other settings would look damaged
    left = len(Log.read(shard).left(args.retry_dead))
    prices = None if args.price_in is None else (args.price_in, args.price_out)
    now, all_parts = estimates(shard, prices, left, shard.settings.documents)
    if args.dry_run:
        print_dry_run(shard, now, all_parts, args.json)
        return 0
    endpoint, classifier = _servers(args)
    console = Console(stderr=True, highlight=False)
    print_estimate(console, shard, now, all_parts)
    if now.documents and all_parts.dollars is not None:  # for all parts together: the tasks of an array cannot ask
        confirm_spending(all_parts.dollars, args.max_cost, args.yes, "--limit or --scores")
    with Bars(console) as bars:
        summary = run_shard(shard, endpoint, classifier, args.retry_dead, bars.line(f"part {shard.number}", _pace))
    print_summary(summary, args.json)
    return 0


def _check(args: argparse.Namespace) -> None:
    judges = KINDS[args.kind].judges
    if (args.price_in is None) != (args.price_out is None):
        raise UsageError("--price-in and --price-out: give both, or neither")
    if args.classifier and not judges:
        raise UsageError(f"--classifier {args.classifier}: only for the kind score, not {args.kind}")
    require_with(args, "--classifier-model", "--classifier")
    require_with(args, "--data", "--dataset")
    require_with(args, "--scores", "--dataset")
    if args.name is not None and judges:
        raise UsageError(f"--name {args.name}: scores go to score_0 to score_5; leave it out")
    taken = ("", ".", "..", "log", "score", *(f"score_{score}" for score in SCORES))  # folders of scores in the same OUT
    if args.name is not None and (Path(args.name).name != args.name or args.name in taken):
        raise UsageError(f"--name {args.name!r}: not the name of a folder for rewritten text; give one such as train")
    if args.input and args.out.resolve().is_relative_to(args.input.resolve()):  # a later start would refuse its own input
        raise UsageError(f"--out {args.out}: in the folder of --input, whose subfolders must hold no tables; name another")
    if not all(score.isdecimal() and len(score) < 10 for score in args.scores):
        raise UsageError(f"--scores {','.join(args.scores)}: give scores separated by commas, such as 4,5")


def request_fields(text: str) -> dict[str, Any]:
    """The fields of a request in JSON, without those that decide what is asked and how the reply arrives."""
    try:
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()  # as it is sent
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.keys() & OURS:
        raise argparse.ArgumentTypeError(f"{text}: give a JSON object, without model, messages, prompt and stream")
    return fields


def _shard(args: argparse.Namespace) -> SynthesisShard:
    number, count = args.part or slurm_shard(os.environ)
    scores = tuple(sorted(set(map(int, args.scores))))
    documents = _input(args, scores)
    kind = KINDS[args.kind]
    settings = SynthesisSettings(
        kind=kind.name,
        input=documents.name,
        scores=scores,
        documents=len(documents),
        parts=count,
        model=args.model,
        prompt=kind.prompt.version,
        temperature=kind.temperature if args.temperature is None else args.temperature,
        max_tokens=args.max_tokens or kind.max_tokens,
        piece_characters=args.piece_characters,
        seed=args.seed,
        classifier=(args.classifier_model or PUBLISHED_CLASSIFIER) if args.classifier else "",
        request=args.request,
    )
    name = "score" if kind.judges else args.name or "train"
    return SynthesisShard(settings, args.out, name, number, documents, sends_seed=not args.no_seed)


def _input(args: argparse.Namespace, scores: tuple[int, ...]) -> Documents:
    if args.input:
        return open_table_input(args.input, args.limit)
    root = args.data or local_root()
    if root is None:
        raise UsageError(f"--dataset {args.dataset}: name its data folder with --data, or set CURRICULA_DATA")
    return open_dataset_input(args.dataset, root, scores, args.limit)


def _servers(args: argparse.Namespace) -> tuple[Endpoint, Endpoint | None]:
    """The server of the model, and that of the second judge if there is one."""
    from curricula.endpoint import Endpoint

    url = args.base_url or os.environ.get("OPENAI_BASE_URL")
    if not url:
        raise UsageError("--base-url: name the server, such as http://node7:8000/v1, or set OPENAI_BASE_URL")
    pace = args.timeout, args.retries, args.tries, args.concurrency
    endpoint = Endpoint(url, os.environ.get("OPENAI_API_KEY", "").strip(), *pace)
    if not args.classifier:
        return endpoint, None
    return endpoint, Endpoint(args.classifier.rstrip("/").removesuffix("/classify"), "", *pace)


def _described(estimate: Estimate) -> str:
    cost = "" if estimate.dollars is None else f", about ${estimate.dollars:,.2f}"
    return (
        f"{estimate.documents:,} documents, {estimate.requests:,} requests, about {estimate.tokens_in:,} tokens in "
        f"and {estimate.tokens_out:,} out{cost}"
    )


def print_estimate(console: Console, shard: SynthesisShard, now: Estimate, all_parts: Estimate) -> None:
    say(console, f"{shard.name}: left to ask {_described(now)}")
    if shard.settings.parts > 1:
        say(console, f"all {shard.settings.parts} parts: {_described(all_parts)}")
    reply = min(shard.settings.how.expected_tokens, shard.settings.max_tokens)
    say(console, f"(from the part's first documents: {CHARACTERS_PER_TOKEN} characters a token in, {reply:,} tokens a reply)")


def print_dry_run(shard: SynthesisShard, now: Estimate, all_parts: Estimate, as_json: bool) -> None:
    document = next((each for each in shard.read() if each.text.strip()), None)
    request = shard.request(document, pieces(document.text, shard.settings.piece_characters)[0]) if document else None
    if as_json:
        print(json_text({"left": asdict(now), "all": asdict(all_parts), "request": request}))
        return
    print_estimate(Console(highlight=False), shard, now, all_parts)
    print(json_text(request))


def print_summary(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json_text(summary))
        return
    lines = [
        "part {part} of {parts}: {done:,} of {documents:,} documents done, {dead:,} dead; "
        "{parts_complete} of {parts} parts have their tables".format_map(summary),
        "asked about {asked:,} now: {requests:,} requests, {retries:,} retries, "
        "{tokens_in:,} tokens in, {tokens_out:,} out".format_map(summary),
        *summary["tables"],
    ]
    if summary["dead_letters"]:
        lines.append(f"dead letters: {summary['dead_letters']} (asked again with --retry-dead)")
    console = Console(highlight=False)
    for line in lines:
        say(console, line)


def _pace(done: int, seconds: float, figures: dict[str, Any]) -> str:
    return f"{done / seconds:,.1f} docs/s, {figures['retries']:,} retries, {figures['dead']:,} dead"
