"""The verb `curricula eval`: has one model answer benchmarks, judges the answers, and prints rates with intervals.

`rejudge.py` shares the options of the judge and the question before money is spent.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from rich.console import Console
from rich.text import Text

from curricula.curriculum.sources.declared import anchor
from curricula.curriculum.sources.registry import local_root
from curricula.durable import exclusive_lock
from curricula.errors import UsageError
from curricula.eval.benchmarks import difference, load_prompts
from curricula.eval.capability.settings import LISTS
from curricula.eval.config import EvalConfig
from curricula.eval.decoding.registry import DECODERS, OWN
from curricula.eval.judges.settings import JUDGES, JudgeConfig
from curricula.eval.rows import CapabilityRow, GenerationRow, Precision, ProbeRow, read_rows
from curricula.eval.tasks import TASKS, EvalTask, judged_tasks, row_files, tasks_with
from curricula.jobs.cli.bars import Bars, no_other_bars, quiet_libraries
from curricula.jobs.cli.options import add_costs, add_json_flag, add_names, add_verb, at_least, confirm_spending
from curricula.settings import changed, parse, read_yaml
from curricula.terminal import json_text, plural, say

if TYPE_CHECKING:
    from curricula.eval.models import LoadedModel
    from curricula.eval.verdicts import JudgeRun
    from curricula.progress import Progress


def add_parser(verbs: argparse._SubParsersAction) -> argparse.ArgumentParser:
    parser = add_verb(
        verbs,
        "eval",
        "measure attack success and over-refusal of any Hugging Face checkpoint",
        "curricula eval --model runs/demo/models/full-20/instruct --data runs/demo/world \\\n"
        "      --benchmark advbench,jailbreakbench --decoder topk,safebeam \\\n"
        "      --max-new-tokens 40 --judge refusal-phrases --prompts 20",
        "curricula eval --model models/mine --config evaluation.yaml --out evaluations/mine --json",
        call="eval:evaluate",
        details="The same command continues after an interruption: no answer is generated twice and no judge is asked twice. "
        "`rejudge` judges stored answers with another judge.",
        usage="curricula eval --model MODEL [options]\n       curricula eval rejudge FOLDER --judge NAME [options]",
    )
    parser.add_argument("--model", metavar="MODEL", help="a Hugging Face folder or name, a .gguf file, or a package with one")
    parser.add_argument(
        "--kind",
        choices=["base", "instruct", "benign"],
        default="instruct",
        help="base models get raw text, others chats (default: instruct)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="a YAML file with what a study has under `evaluation`: tasks, own benchmarks, judges, decoders, capability, GCG, "
        "probes; replaces the options that choose benchmarks and decoders",
    )
    add_names(parser, "--benchmark", "B", f"names (default: {','.join(EvalConfig().benchmarks)})")
    add_names(parser, "--decoder", "D", f"names (default: {','.join(OWN)})")
    add_names(parser, "--overrefusal", "B", "also measure over-refusal, on these benign requests, such as alpaca")
    add_names(parser, "--capability", "T", "also measure capability, by tasks of lm_eval or `quick` or `full`")
    parser.add_argument(
        "--suffixes",
        type=_folder_of_rows,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="the rows of a model named in attacks.suffixes_of, whose GCG suffixes are tried on this model",
    )
    parser.add_argument("--data", type=Path, help="folder of benchmark files (default: CURRICULA_DATA, else the hub)")
    accepted = "benchmarks whose prompts may differ from the published set, which is an error otherwise"
    add_names(parser, "--accept-changed", "B", accepted)
    parser.add_argument("--prompts", type=at_least(1), metavar="N", help="no more than this many prompts of each benchmark")
    parser.add_argument("--samples", type=at_least(1), metavar="N", help="answers to each prompt under top-k (default: 5)")
    parser.add_argument("--max-new-tokens", type=at_least(1), metavar="N", help="tokens of an answer (default: 256)")
    parser.add_argument("--device", help="cpu, cuda or cuda:1 (default: the GPU if there is one)")
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="of weights (default: bfloat16 on a GPU, otherwise float32)"
    )
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="random seed (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, help="the folder of the rows; the same command resumes from it (default: evaluations/MODEL PATH)"
    )
    add_json_flag(parser)
    add_judge_options(parser, required=False)
    return parser


def evaluate(args: argparse.Namespace) -> int:
    """Check the arguments, generate, judge, print. Rows are in OUT, as `eval/rows.py` describes."""
    from curricula.eval.verdicts import MergeAndJudge, stamp_path

    no_other_bars()
    config = _config(args)
    tasks = config.eval_tasks(args.kind)
    data = args.data or local_root()
    path = Path(args.model)
    path = path.resolve() if path.exists() else path
    out = args.out or Path("evaluations") / "-".join(path.relative_to(path.anchor).parts[-3:])
    console = Console(stderr=True, highlight=False, markup=False)
    check_judges = _check(args, config, tasks, data)
    if not stamp_path(out).exists():
        check_judges()  # nothing has been judged here yet, so judges are needed: check them before a model is loaded
    with exclusive_lock(out / "lock"):
        quiet_libraries()
        _generate(args, config, tasks, data, out, console, check_judges)
        work = MergeAndJudge(out, args.kind, config, data, whatever_is_there=True, ask_unparsed_again=args.retry_unparsed)
        before_asking(args, work.judge_runs.values(), check_judges, console)
        with Bars(console) as bars:
            work.judge(bars.line("judge"))
    metrics = _metrics(args, tasks, out)
    used = config.benchmarks_of(tasks)
    accepted = [name for name in config.accept_changed if name in used and name not in config.prompts]
    changed = {name: how for name in accepted if (how := difference(name, data))}
    if args.json:
        from curricula.eval.report.tables import as_row

        shown = {kind: [as_row(entry) for entry in entries] for kind, entries in metrics.items()}
        print(json_text({**shown, "changed": changed}))
        return 0
    from curricula.eval.report.console import print_metrics

    print_metrics(metrics, Console(highlight=False))
    for name, how in changed.items():
        print(f"Not the published {name}: {how}.")
    print(f"Rows: {out}")
    return 0


def _folder_of_rows(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER, such as full-0=evaluations/full-0")
    return name, Path(folder)


def _config(args: argparse.Namespace) -> EvalConfig:
    """The evaluation that `--config` or the options describe, with the judge, precision and accepted sets of the options."""
    if not args.model:
        raise UsageError("--model: name the model to evaluate, such as runs/demo/models/full-20/instruct")
    if args.judge is None and (args.judge_model or args.judge_url or args.judge_template or args.judge_set):
        raise UsageError("--judge-* without --judge: name the judge as well")
    given = _given_in_file(args) if args.config else _given_by_options(args)
    if isinstance(given, dict):
        given |= {} if args.judge is None else {"judge": msgspec.to_builtins(judge_from(args))}
        given |= {name: getattr(args, name) for name in ("precision", "accept_changed") if getattr(args, name)}
    config = parse(given, EvalConfig, str(args.config or "curricula eval"))
    if args.config:
        anchor(config, args.config.parent)
        config.anchor_paths(args.config.parent)
    tasks = config.eval_tasks(args.kind)
    if not tasks:
        raise UsageError(f"{args.config}: names no task for {args.kind} models; add tasks.{args.kind}, such as [attacks-topk]")
    asked = {task.benchmark for task in tasks if task.task.kind == "transfer"}
    found = dict(args.suffixes).keys()
    if unknown := sorted(found - {*config.attacks.suffixes_of}):
        raise UsageError(
            f"--suffixes {unknown[0]}: not named in attacks.suffixes_of of a --config; name it there, or leave it out"
        )
    if missing := sorted(asked - found):
        raise UsageError(f"attacks.suffixes_of names {missing[0]}; say where its rows are with --suffixes {missing[0]}=FOLDER")
    return config


def _given_by_options(args: argparse.Namespace) -> dict[str, Any]:
    decoders, benchmarks = args.decoder or OWN, args.benchmark or EvalConfig().benchmarks
    if unknown := sorted(set(decoders) - set(DECODERS)):
        raise UsageError(f"--decoder {','.join(unknown)}: not known; choose from {', '.join(DECODERS)}")
    if args.samples and "topk" not in decoders:
        raise UsageError(f"--samples {args.samples}: only topk draws several answers; add it to --decoder, or leave it out")
    if args.kind == "base" and len(benchmarks) > 1:
        raise UsageError(f"--benchmark {','.join(benchmarks)}: base models take one benchmark of beginnings: jb_completions")
    benign = args.overrefusal
    capability = list(dict.fromkeys(task for name in args.capability for task in LISTS.get(name, (name,))))
    overrefusal = tasks_with("overrefusal", decoders) if benign else []
    if benign and not overrefusal:
        raise UsageError(
            f"--overrefusal {','.join(benign)}: not measured under greedy decoding; add topk or safebeam to --decoder, "
            "or leave --overrefusal out"
        )
    tasks = [task.name for task in (*tasks_with("attack", decoders), *overrefusal)]
    own = {"max_new_tokens": args.max_new_tokens or 256}
    return {
        **({"base_benchmark": benchmarks[0]} if args.kind == "base" else {"benchmarks": benchmarks}),
        "overrefusal_benchmark": benign or "alpaca",
        "prompts_per_benchmark": args.prompts,
        "overrefusal_prompts": args.prompts or 300,
        **dict.fromkeys(OWN, own),
        "topk": own if args.samples is None else {**own, "samples": args.samples},
        "gcg": None,
        "probes": None,
        "capability": {"tasks": capability} if capability else None,
        "tasks": {"base": [], "instruct": [], "benign": [], args.kind: [*tasks, *(["capability"] if capability else [])]},
    }


def _given_in_file(args: argparse.Namespace) -> Any:
    for option in ("benchmark", "decoder", "overrefusal", "capability", "prompts", "samples", "max_new_tokens"):
        if getattr(args, option):
            raise UsageError(f"--{option.replace('_', '-')} and --config: give it in {args.config}, or leave --config out")
    given = read_yaml(args.config, "no such file; name a YAML file with what a study has under `evaluation`")
    return {} if given is None else given


def _check(args: argparse.Namespace, config: EvalConfig, tasks: list[EvalTask], data: Path | None) -> Callable[[], None]:
    """Check the benchmarks and judges now, since they would fail only after hours.

    Returns a function that looks for the judges' models or servers, once. Call it before the first missing answer or verdict:
    finished ones are shown without a key or network.
    """
    from curricula.eval.capability.harness import local_task
    from curricula.eval.judges.registry import check_access, load_judge
    from curricula.eval.probes.texts import check_texts
    from curricula.eval.runner import task_prompts

    rows_of = dict(args.suffixes).__getitem__
    for task in tasks:
        prompts = task_prompts(task, config, data, rows_of)
        if task.task.kind == "capability" and config.capability:
            local_task(task.benchmark, config.capability, prompts or None)
        if task.task.kind == "probes" and config.probes:
            check_texts(data, config.probes)
    for name in sorted(set(config.benchmarks_of(tasks)) - {task.benchmark for task in tasks}):  # of the refusal direction
        load_prompts(name, data, own=config.prompts, accept_changed=config.accept_changed)
    kinds = dict.fromkeys(task.task.judged for task in tasks if task.task.judged)
    for kind in kinds:
        load_judge(config.judge_of(kind), kind, data)

    @functools.cache
    def check_judges() -> None:
        for settings in {repr(judge): judge for judge in map(config.judge_of, kinds)}.values():
            check_access(settings)

    return check_judges


def _generate(
    args: argparse.Namespace,
    config: EvalConfig,
    tasks: list[EvalTask],
    data: Path | None,
    out: Path,
    console: Console,
    check_judges: Callable[[], None],
) -> None:
    from curricula.eval.models import load_model
    from curricula.eval.runner import check_lengths, run_element, task_prompts

    with console.status(Text(f"loading {args.model}")):  # as a string, it would be read as markup
        loaded = load_model(args.model, args.kind, args.device, config.precision, deterministic=config.deterministic)
    _refuse_another_model(out, loaded)
    rows_of = dict(args.suffixes).__getitem__
    for task in tasks:
        if task.has_prompts:
            check_lengths(loaded, task_prompts(task, config, data, rows_of))
    settings = [each for task in tasks for each in config.decoder_settings(task.task)]
    longest = max((getattr(each, "max_new_tokens", None) or 0 for each in settings), default=0)
    if longest >= loaded.context_length:
        say(
            console,
            f"The context of {args.model} holds {loaded.context_length} tokens, the prompt among them: "
            f"answers are cut there, before they reach {longest} tokens.",
        )
    with Bars(console) as bars:
        for task in tasks:
            line = bars.line(task.name)
            progress = _after(check_judges, line) if task.task.judged else line
            run_element(task, loaded, config, data_root=data, out=out, seed=args.seed, rows_of=rows_of, progress=progress)


def _after(check: Callable[[], None], report: Progress) -> Progress:
    """`report`, with a call of `check` before it as long as something is missing."""

    def progress(done: int, total: int, **figures: Any) -> None:
        if done < total:
            check()
        report(done, total, **figures)

    return progress


def _refuse_another_model(out: Path, loaded: LoadedModel) -> None:
    """Raise UsageError if the folder holds rows of another model, also for benchmarks and decoders not asked for now."""
    now = (loaded.kind, loaded.content_hash, loaded.precision)
    for task in (*judged_tasks(), TASKS["capability"]):
        for path in row_files(out, task):
            rows: list[Any] = read_rows(path, GenerationRow if task.judged else CapabilityRow)
            if rows and (here := (rows[0].model_kind, rows[0].model, rows[0].precision)) != now:
                shown = ["{} {:.12} in {}".format(*each) for each in (here, now)]
                raise UsageError(
                    f"{out}: holds the answers of another model ({shown[0]}, this one is {shown[1]}); name another folder "
                    "with --out"
                )


def _metrics(args: argparse.Namespace, tasks: list[EvalTask], out: Path) -> dict[str, list[Any]]:
    """The metrics of the rows that this command asks for, by kind, and the worst case over attacks."""
    from curricula.eval.analysis import ArmInfo, StudyRows
    from curricula.eval.analysis.capability import capability_metrics
    from curricula.eval.analysis.metrics import Model, attack_metrics, overrefusal_metrics, probe_metrics, pruning_metrics
    from curricula.eval.analysis.runs import Runs
    from curricula.eval.analysis.worst_case import attack_strengths, attacks_met
    from curricula.eval.verdicts import merged_path, read_judged

    judged = [task for task in tasks if task.task.judged]
    generated = [row for task in judged for row in read_rows(task.path(out), GenerationRow)]
    asked = {row.key for row in generated}
    name, answers = Path(args.model).name, {}
    model = Model(name, 0, args.kind)
    answered = [row for task in tasks if task.task.kind == "capability" for row in read_rows(task.path(out), CapabilityRow)]
    probed = [row for task in tasks if task.task.kind == "probes" for row in read_rows(task.path(out), ProbeRow)]
    metrics: dict[str, list[Any]] = {
        "attacks": [],
        "overrefusal": [],
        "pruning": pruning_metrics(generated, model),
        "capability": capability_metrics(answered, model),
        "probes": probe_metrics(probed, model),
    }
    for task in dict.fromkeys(each.task for each in judged):
        rows = [row for row in read_judged(merged_path(out, task.name)) if row.key in asked]
        if task.judged == "attack":
            metrics["attacks"] += attack_metrics(rows, model)
            answers[name, args.kind, task.name] = rows
        else:
            metrics["overrefusal"] += overrefusal_metrics(rows, model)
    study = StudyRows((ArmInfo(name, 0.0, name, args.seed),), answers, {})
    metrics["worst_case"] = list(attack_strengths(attacks_met(Runs(study))))
    return {kind: entries for kind, entries in metrics.items() if entries or kind in ("attacks", "overrefusal")}


def add_judge_options(parser: argparse.ArgumentParser, required: bool) -> None:
    group = parser.add_argument_group("the judge", "The key of a server is read from OPENAI_API_KEY only.")
    group.add_argument(
        "--judge",
        required=required,
        metavar="NAME",
        help=f"{', '.join(JUDGES)}, or a YAML file of settings" + ("" if required else " (default: refusal-phrases)"),
    )
    group.add_argument("--judge-model", metavar="MODEL", help="a folder, a Hugging Face name, or its name on the server")
    group.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server, such as http://node7:8000/v1")
    group.add_argument("--judge-template", metavar="NAME", help="the judge's template (default: the model's or task's own)")
    group.add_argument(
        "--judge-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting of the judge, such as requests_per_minute=600, batch_api=true or price_in=0.15; can be repeated",
    )
    group.add_argument("--retry-unparsed", action="store_true", help="ask again where this judge's reply held no verdict")
    add_costs(group)


def judge_from(args: argparse.Namespace) -> JudgeConfig:
    """The judge that the options describe; raises UsageError for a wrong option."""
    given: dict[str, Any] = {"name": args.judge or "refusal-phrases"}
    if args.judge and args.judge not in JUDGES and Path(args.judge).is_file():
        given = read_yaml(Path(args.judge), "no such file")
        if not isinstance(given, dict):
            raise UsageError(f"--judge {args.judge}: holds no settings; write name: and model: there")
    for option in ("model", "url", "template"):
        value = getattr(args, f"judge_{option}")
        if value is not None:
            given[option] = value
    for pair in args.judge_set:
        given = changed(given, pair, f"--judge-set {pair}")
    return parse(given, JudgeConfig, f"--judge {args.judge or given['name']}")


def before_asking(
    args: argparse.Namespace, judge_runs: Collection[JudgeRun], check_judges: Callable[[], None], console: Console
) -> None:
    """If questions are left, look for the judges, print what servers will be asked, and ask before exceeding --max-cost.

    Raises UsageError if the answer is no or nobody can answer, and UserError if another process is judging.
    """
    open_runs = [judge_run for judge_run in judge_runs if judge_run.left]
    if open_runs:
        check_judges()
    for judge_run in open_runs:  # before anyone is asked about a cost
        with judge_run.locked():
            pass
    waiting = [(judge_run.judge, judge_run.left) for judge_run in open_runs]
    paid = [estimate for judge, left in waiting if (estimate := judge.estimate(left))]
    if not paid:
        return
    questions = sum(estimate.questions for estimate in paid)
    tokens_in, tokens_out = sum(estimate.tokens_in for estimate in paid), sum(estimate.tokens_out for estimate in paid)
    prices = [estimate.dollars for estimate in paid]
    dollars = None if None in prices else sum(price for price in prices if price is not None)
    cost = "prices not given (--judge-set price_in=...)" if dollars is None else f"about ${dollars:,.2f}"
    say(
        console,
        f"The judge will be asked {plural(questions, 'question')}: about {tokens_in:,} tokens in and at most {tokens_out:,} "
        f"out, {cost}.",
    )
    if dollars is not None:
        fewer = "a folder of fewer models" if hasattr(args, "folder") else "--prompts"
        confirm_spending(dollars, args.max_cost, args.yes, fewer)
