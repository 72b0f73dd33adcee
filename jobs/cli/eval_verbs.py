"""The verb `curricula eval`: answers of one model to benchmarks under decoders, judged, as a table with intervals."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from rich.console import Console

from curricula.curriculum.sources.registry import local_root
from curricula.durable import exclusive_lock
from curricula.errors import UsageError
from curricula.eval.benchmarks import BENCHMARKS, Use, find
from curricula.eval.config import EvalConfig, Tasks
from curricula.eval.decoding.registry import DECODERS
from curricula.eval.rows import Precision
from curricula.eval.tasks import TASKS, EvalTask, judged_tasks, tasks_with
from curricula.jobs.cli.eval_display import Bars, no_other_bars, print_cells, quiet_libraries
from curricula.jobs.cli.help_text import HelpFormatter
from curricula.jobs.cli.judge_options import add_judge_options, confirm_cost, judge_from, look_at_server

if TYPE_CHECKING:
    from curricula.eval.models import LoadedModel

EXAMPLE = (
    "curricula eval --model runs/demo/models/full-20/instruct --benchmark advbench,jailbreakbench "
    "--decoder topk,safebeam --judge refusal-phrases --prompts 20"
)


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Add `eval` and `eval rejudge` to the words after `curricula`."""
    from curricula.jobs.cli.rejudge_verb import add_parser as add_rejudge

    what = "measure attack success and over-refusal of any Hugging Face checkpoint"
    parser = verbs.add_parser(
        "eval",
        help=what,
        description=what[0].upper() + what[1:] + ". The same command goes on after an interruption: no answer is "
        "generated twice and no judge is asked twice.",
        epilog=f"example:\n  {EXAMPLE}\n\n`curricula eval rejudge FOLDER --judge NAME` judges stored answers again.",
        formatter_class=HelpFormatter,
    )
    parser.set_defaults(verb=evaluate)
    parser.add_argument(
        "--model", metavar="MODEL", help="a Hugging Face folder or name, a .gguf file, or a package that holds one"
    )
    parser.add_argument(
        "--kind", choices=["base", "instruct", "benign"], default="instruct", help="base models get raw text"
    )
    parser.add_argument("--benchmark", default="harmbench,advbench,jailbreakbench,tdc", help="names, by commas")
    parser.add_argument("--decoder", default=",".join(DECODERS), help="by commas (default: %(default)s)")
    parser.add_argument(
        "--overrefusal", metavar="BENCHMARK", help="benign requests to measure over-refusal on too, such as alpaca"
    )
    parser.add_argument("--data", type=Path, help="folder of benchmark files (default: CURRICULA_DATA, else the hub)")
    parser.add_argument("--prompts", type=int, help="no more than this many prompts of each benchmark")
    parser.add_argument("--samples", type=int, help="answers to each prompt under top-k (default: 5)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: the GPU where there is one)")
    parser.add_argument("--precision", choices=get_args(Precision), help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, help="where rows are kept, and resumed from (default: evaluations/MODEL PATH)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    add_judge_options(parser, required=False)
    add_rejudge(parser.add_subparsers(metavar="rejudge", title="judging again"))


def evaluate(words: argparse.Namespace) -> int:
    """Check every word, generate, judge, print. Rows lie in OUT, as `eval/rows.py` describes."""
    no_other_bars()
    config = _config(words)
    parts = config.eval_tasks(words.kind)
    data = words.data or local_root()
    world = data if "world" in (config.judge_of("attack").name, config.judge_of("overrefusal").name) else None
    path = Path(words.model)
    out = words.out or Path("evaluations") / "-".join(path.resolve().parts[-3:] if path.exists() else path.parts)
    console = Console(stderr=True, highlight=False)
    _check(config, parts, data, world, console)
    with exclusive_lock(out / "lock"), Bars(console) as bars:
        quiet_libraries()
        _generate(words, config, parts, data, out, bars)
        _judge(words, config, out, world, console, bars)
    cells = _cells(words, parts, out)
    if words.json:
        print(json.dumps({kind: msgspec.to_builtins(of) for kind, of in cells.items()}, indent=1))
        return 0
    print_cells(cells, Console(highlight=False))
    print(f"Rows: {out}")
    return 0


def _config(words: argparse.Namespace) -> EvalConfig:
    if not words.model:
        raise UsageError("--model: name the model to evaluate, such as runs/demo/models/full-20/instruct")
    decoders, benchmarks = _names("--decoder", words.decoder), _names("--benchmark", words.benchmark)
    if unknown := sorted(set(decoders) - set(DECODERS)):
        raise UsageError(f"--decoder {','.join(unknown)}: not known; choose from {', '.join(DECODERS)}")
    if words.kind == "base" and len(benchmarks) > 1:
        raise UsageError(
            f"--benchmark {words.benchmark}: base models take one benchmark of beginnings, such as jb_completions"
        )
    overrefusal = tasks_with("overrefusal", decoders) if words.overrefusal else []
    if words.overrefusal and not overrefusal:
        raise UsageError(
            f"--overrefusal {words.overrefusal}: is measured under topk and safebeam, and --decoder is greedy alone; "
            "add one of them, or leave --overrefusal out"
        )
    for option in ("prompts", "samples", "max_new_tokens"):
        value = getattr(words, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option.replace('_', '-')} {value}: give 1 or more")
    tasks = [task.name for task in (*tasks_with("attack", decoders), *overrefusal)]
    _require_use(words, benchmarks)
    own = {"max_new_tokens": words.max_new_tokens}
    try:
        return msgspec.convert(
            {
                "benchmarks": benchmarks,
                "base_benchmark": benchmarks[0],
                "overrefusal_benchmark": words.overrefusal or "alpaca",
                "judge": judge_from(words),
                "precision": words.precision,
                "prompts_per_benchmark": words.prompts,
                "overrefusal_prompts": words.prompts or 300,
                "topk": own if words.samples is None else {**own, "samples": words.samples},
                "safebeam": own,
                "greedy": own,
                "gcg": None,
                "probes": None,
                "tasks": msgspec.to_builtins(Tasks(base=(), instruct=(), benign=())) | {words.kind: tasks},
            },
            EvalConfig,
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"eval: {error}") from None


def _require_use(words: argparse.Namespace, benchmarks: list[str]) -> None:
    """A benchmark of harmless requests has no attack success, and beginnings are for base models."""
    wanted: list[tuple[str, str, Use]] = [
        ("--benchmark", name, "completion" if words.kind == "base" else "attack") for name in benchmarks
    ]
    wanted += [("--overrefusal", words.overrefusal, "overrefusal")] if words.overrefusal else []
    for option, name, use in wanted:
        if find(name).use != use:
            fitting = ", ".join(known for known, entry in BENCHMARKS.items() if entry.use == use)
            raise UsageError(f"{option} {name}: is for {find(name).use}, and this is for {use}; choose from {fitting}")


def _names(option: str, given: str) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    if not all(names):
        raise UsageError(f"{option} {given!r}: holds an empty name; give names by commas")
    return list(dict.fromkeys(names))


def _check(config: EvalConfig, parts: list[EvalTask], data: Path | None, world: Path | None, console: Console) -> None:
    """What would fail after hours is better said now: benchmarks, the judge, its server's address."""
    from curricula.eval.judges.registry import load_judge
    from curricula.eval.judging.verdicts import kind_of
    from curricula.eval.runner import task_prompts

    for part in parts:
        task_prompts(part, config, data)
    for kind in dict.fromkeys(kind_of(part.task.name) for part in parts):
        load_judge(config.judge_of(kind), kind, world)
    look_at_server(config.judge_of("attack"), console)


def _generate(
    words: argparse.Namespace, config: EvalConfig, parts: list[EvalTask], data: Path | None, out: Path, bars: Bars
) -> None:
    from curricula.eval.models import load_model
    from curricula.eval.runner import check_lengths, run_element, task_prompts

    with bars.waiting(f"loading {words.model}"):
        loaded = load_model(words.model, words.kind, words.device, config.precision)
    _refuse_another_model(out, loaded)
    if words.max_new_tokens >= loaded.context_length:
        raise UsageError(
            f"--max-new-tokens {words.max_new_tokens}: the context of {words.model} holds {loaded.context_length} tokens, "
            "the prompt among them; give fewer"
        )
    for part in parts:
        check_lengths(loaded, task_prompts(part, config, data))
    for part in parts:
        run_element(
            part, loaded, words.kind, config, data_root=data, out=out, seed=words.seed, progress=bars.line(part.name)
        )


def _refuse_another_model(out: Path, loaded: LoadedModel) -> None:
    """Whatever the folder holds is of one model, benchmarks and decoders that this command leaves out too."""
    from curricula.eval.rows import GenerationRow, read_rows
    from curricula.eval.tasks import row_files

    for path in (path for task in judged_tasks() for path in row_files(out, task)):
        rows = read_rows(path, GenerationRow)
        now = (loaded.kind, loaded.content_hash, loaded.precision)
        if rows and (here := (rows[0].model_kind, rows[0].model, rows[0].precision)) != now:
            shown = ["{} {:.12} in {}".format(*each) for each in (here, now)]
            raise UsageError(
                f"{out}: holds the answers of another model ({shown[0]}, this one is {shown[1]}); name another folder "
                "with --out"
            )


def _judge(
    words: argparse.Namespace, config: EvalConfig, out: Path, world: Path | None, console: Console, bars: Bars
) -> None:
    from curricula.eval.judging.merge import Merge

    work = Merge(out, words.kind, config, world, whatever_is_there=True, ask_unparsed_again=words.retry_unparsed)
    confirm_cost(words, work.estimates(), console)
    work.judge(bars.line("judge"))


def _cells(words: argparse.Namespace, parts: list[EvalTask], out: Path) -> dict[str, list[Any]]:
    """The attack and over-refusal cells of each task, of the benchmarks that this command names."""
    from curricula.eval.analysis.metrics import attack_cells, overrefusal_cell, row_id
    from curricula.eval.judging.merge import merged_path
    from curricula.eval.judging.verdicts import kind_of, read_judged
    from curricula.eval.rows import GenerationRow, read_rows

    asked = {row.key for part in parts for row in read_rows(part.path(out), GenerationRow)}
    cells: dict[str, list[Any]] = {"attacks": [], "overrefusal": []}
    name = Path(words.model).name
    for task in dict.fromkeys(part.task.name for part in parts):
        rows = [row for row in read_judged(merged_path(out, task)) if row.key in asked]
        expected = set(map(row_id, rows))
        if kind_of(task) == "attack":
            cells["attacks"] += attack_cells(rows, name, words.kind, expected)
        else:
            cells["overrefusal"].append(overrefusal_cell(rows, name, words.kind, TASKS[task].decoders[0], expected))
    return cells
