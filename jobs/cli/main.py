"""The command line: `curricula VERB ...`. Parses the arguments, calls the verb, reports an error in one sentence.

Exit codes: 0 success, 1 something outside is wrong or a job failed, 2 the command or the study is wrong, 130 interrupted,
141 the reader of the output left.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from curricula.errors import UsageError, UserError
from curricula.jobs.cli.options import Parser, add_json_flag, add_selection, add_verb, at_least, completion
from curricula.terminal import folded, guarded_output, printable

STUDY = "jobs/studies/demo.yaml"
PAPER = "jobs/studies/paper.yaml"
PROFILE = "env/profiles/h100-4x8.yaml"
WITH_OWN_PARSERS = ("data", "eval")
"""Verbs whose options import large modules. The parser gets these options only if the arguments name the verb."""


def main(arguments: list[str] | None = None) -> int:
    with guarded_output():
        return _exit_code(sys.argv[1:] if arguments is None else arguments)


def _exit_code(arguments: list[str]) -> int:
    try:
        code = _call_verb(arguments)
        sys.stdout.flush()  # here, where an error can still be reported
        return code
    except UserError as error:
        print(folded(f"curricula: {printable(str(error))}", sys.__stderr__), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:  # one that no verb expected; name at least its file
        place = f"{printable(str(error.filename))}: " if error.filename else ""
        print(f"curricula: {place}{error.strerror or error}; use another path, or correct this one", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("curricula: interrupted; the same command continues from here", file=sys.stderr)
        return 130


def _call_verb(arguments: list[str]) -> int:
    parser = build_parser(arguments)
    args = parser.parse_args(arguments)
    if args.verb == "rejudge:rejudge" and arguments[1] != "rejudge":
        raise UsageError(
            f"{arguments[1]}: comes before rejudge, where `curricula eval rejudge` reads no options; write all after it"
        )
    if args.version:
        from curricula import __version__

        print(f"curricula {__version__}")
    elif args.print_completion:
        print(completion(build_parser(WITH_OWN_PARSERS), args.print_completion))
    elif args.verb is None:
        parser.print_help()
    else:
        return pkgutil.resolve_name(f"curricula.jobs.cli.{args.verb}")(args)
    return 0


def build_parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser for `arguments`. Of the verbs in `WITH_OWN_PARSERS`, only those among `arguments` get their options."""
    parser = Parser(
        prog="curricula",
        description="When should safety enter pretraining?\nPlan, run and evaluate the study, end to end.",
        epilog="a whole study on this machine, in about ten minutes:\n  curricula demo\n"
        "step by step, with a study of your own:\n  curricula plan my-study.yaml\n  curricula submit my-study.yaml\n"
        "  curricula status\ncompletion on Tab (bash; zsh and tcsh likewise):\n"
        "  curricula --print-completion bash >> ~/.bash_completion",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument(
        "--print-completion", choices=["bash", "zsh", "tcsh"], metavar="SHELL", help="print a completion script for the shell"
    )
    parser.set_defaults(verb=None)
    verbs = parser.add_subparsers(metavar="VERB")
    _add_study_verbs(verbs)
    _add_run_verbs(verbs)
    data = add_verb(
        verbs,
        "data",
        "make, tokenise and inspect pretraining data",
        "curricula data fetch --list",
        f"curricula data tokenize {STUDY}",
        "curricula data inspect runs/demo/data/shards/unsafe-tagged",
    )
    if "data" in arguments:
        _add_data_verbs(data.add_subparsers(metavar="WHAT", required=True))
    _add_model_verbs(verbs)
    if "eval" in arguments:
        from curricula.jobs.cli.eval import add_parser as add_eval
        from curricula.jobs.cli.rejudge import add_parser as add_rejudge

        add_rejudge(add_eval(verbs).add_subparsers(prog="curricula eval", metavar="rejudge", title="judging again"))
    else:
        verbs.add_parser("eval", help="measure attack success and over-refusal of any Hugging Face checkpoint")
    return parser


def _add_study_verbs(verbs: argparse._SubParsersAction) -> None:
    demo = add_verb(
        verbs,
        "demo",
        "run the study in miniature on this machine, and write its report",
        "curricula demo",
        call="submit:demo",
        details="Five arms in a fictional world, in about ten minutes on two cores. The same as `curricula submit demo`; the "
        "same command continues after an interruption.",
    )
    demo.add_argument("--full", action="store_true", help="every arm, stage and attack: demo-full, about 25 minutes")
    plan = add_verb(
        verbs, "plan", "show what a study will do: arms, tokens, jobs, GPU-hours", f"curricula plan {STUDY}", call="plan:plan"
    )
    _add_study(plan)
    plan.add_argument("--run", type=Path, help="the run folder for sizes and, with --power, variances (default: runs/NAME)")
    plan.add_argument(
        "--power", action="store_true", help="show the smallest detectable difference in attack success, and the cost of seeds"
    )
    add_json_flag(plan)

    submit = add_verb(
        verbs,
        "submit",
        "run a study, or continue one that was interrupted",
        f"curricula submit {STUDY} --cluster local",
        f"curricula submit {STUDY} --set seeds=[1] --set pretraining.optimizer.lr=1e-3 --run runs/lr-1e-3",
        f"curricula submit {PAPER} --cluster slurm \\\n      --profile {PROFILE} --dry-run",
        f"curricula submit {PAPER} --cluster slurm \\\n      --profile {PROFILE} --stage pretrain --arm full-20",
        call="submit:submit",
        details="Finished elements are not run again. --arm includes what the arm shares with others: the data, and "
        "pretraining up to where it branches off. An element whose prerequisites are neither done nor selected is refused.",
    )
    _add_study(submit)
    submit.add_argument("--cluster", choices=["local", "slurm"], default="local", help="local (here, the default) or slurm")
    submit.add_argument("--run", type=Path, help="the run folder (default: runs/NAME, or the profile's)")
    submit.add_argument("--yes", action="store_true", help="do not ask, however many hours the work takes")
    add_selection(submit, default="all that are not done")
    slurm = submit.add_argument_group("on a Slurm cluster")
    slurm.add_argument("--profile", metavar="P", type=Path, help=f"the site's profile, such as {PROFILE}")
    slurm.add_argument("--dry-run", action="store_true", help="show jobs and sbatch scripts; submit and write nothing")

    render = add_verb(
        verbs,
        "render",
        "write the study's jobs as plain sbatch scripts, with a script that submits them",
        f"curricula render {PAPER} /scratch/paper/scripts \\\n      --profile {PROFILE}",
        call="submit:render",
    )
    _add_study(render)
    render.add_argument("out", type=Path, metavar="OUT", help="the folder for the scripts")
    render.add_argument("--profile", type=Path, required=True, metavar="P", help="the site's profile, see env/profiles/")
    render.add_argument("--run", type=Path, help="the run folder, on a disk that all nodes see (default: the profile's)")


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML), or one of the suite's by name")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the file, such as pretraining.optimizer.lr=3e-4 or 'seeds=[1, 2]'; can be repeated",
    )


def _add_run_verbs(verbs: argparse._SubParsersAction) -> None:
    status = add_verb(
        verbs,
        "status",
        "show how far a run is: states, steps, loss, speed, time left, errors",
        "curricula status runs/demo",
        "curricula status /scratch/paper --arm full-20 --watch",
        "curricula status runs/demo --json | jq '.[] | select(.state == \"failed\")'",
        call="status:show_status",
        details="Reads the run folder and, for a run on Slurm, calls squeue once. `beat` is the time since an element last "
        "reported its progress.",
    )
    status.add_argument("run", type=Path, metavar="RUN", nargs="?", help="a run folder (default: the newest in runs/)")
    add_selection(status)
    shown = status.add_mutually_exclusive_group()
    shown.add_argument("--watch", action="store_true", help="refresh until everything is done or you press Ctrl-C")
    shown.add_argument("--json", action="store_true", help="print JSON for scripts: a list of elements")
    seconds = at_least(0.1, 86400)
    status.add_argument(
        "--interval", type=seconds, metavar="S", help="with --watch: seconds between refreshes (default: 2; 15 on Slurm)"
    )

    logs = add_verb(
        verbs,
        "logs",
        "print or follow the logs of elements, the first error first",
        "curricula logs runs/demo",
        "curricula logs runs/demo pretrain-20 full-20 -f",
        "curricula logs runs/demo --arm full-20 --grep 'loss|error'",
        "curricula logs runs/demo pretrain-0 full-0 --rank all",
        call="logs:show_logs",
        details="The earliest error among all processes comes before the lines. By default only elements that failed or are "
        "running are shown.",
        usage="curricula logs [RUN] [JOB [ELEMENT]] [options]",
    )
    logs.add_argument("run", type=Path, metavar="RUN", nargs="?", help="a run folder (default: the newest in runs/)")
    logs.add_argument("job", metavar="JOB", nargs="?", help="a job, as `curricula status` names it")
    logs.add_argument("element", metavar="ELEMENT", nargs="?", help="one element of the job (default: all)")
    add_selection(logs, default="those that failed or are running")
    logs.add_argument("--rank", default="0", metavar="N", help="the process to read, or all (default: 0)")
    logs.add_argument("--grep", metavar="RE", help="only lines that match this regular expression")
    lines = "only the last N of each element (default: all; 20 for several elements or with -f)"
    logs.add_argument("-n", "--lines", type=at_least(1), metavar="N", help=lines)
    logs.add_argument("-f", "--follow", action="store_true", help="keep printing new lines, until Ctrl-C")

    retry = add_verb(
        verbs,
        "retry",
        "rerun what failed, was cancelled or is stale, and all that depends on it",
        "curricula retry runs/demo",
        "curricula retry /scratch/paper --stage evaluate --dry-run",
        call="submit:retry",
        details="Training continues from its last checkpoint, evaluation after its last row. A run on Slurm is submitted there "
        "again, with the same profile; any other run continues on this machine.",
    )
    retry.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    add_selection(retry, default="all that ended without success or are stale")
    retry.add_argument("--profile", type=Path, metavar="P", help="a cluster profile to use instead of the submission's")
    retry.add_argument("--dry-run", action="store_true", help="only print what would run")

    cancel = add_verb(
        verbs,
        "cancel",
        "cancel all or some of a run's Slurm jobs",
        "curricula cancel /scratch/paper",
        "curricula cancel /scratch/paper --stage evaluate --arm full-20 --yes",
        call="submit:cancel",
        details="What is finished stays. Training that runs is killed; `curricula retry` submits it again, and it continues "
        "from its last checkpoint.",
    )
    cancel.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    add_selection(cancel)
    cancel.add_argument("--yes", action="store_true", help="do not ask")

    report = add_verb(
        verbs,
        "report",
        "build the report page of a run, and one that compares several",
        "curricula report runs/demo",
        "curricula report runs/demo runs/demo-full",
        "curricula report runs/demo --serve",
        call="results:report",
    )
    report.add_argument("run", type=Path, metavar="RUN", nargs="+", help="a run folder; unfinished ones show what is missing")
    report.add_argument("--serve", action="store_true", help="show the page here and keep it up to date, until Ctrl-C")
    report.add_argument("--port", type=int, metavar="N", help="the port of --serve (default: 8642; 0: any free one)")


def _add_data_verbs(verbs: argparse._SubParsersAction) -> None:
    from curricula.jobs.cli.fetch import add_parser as add_fetch
    from curricula.jobs.cli.synthesize import add_parser as add_synthesize

    world = add_verb(
        verbs, "world", "write the fictional world's datasets to a folder", "curricula data world /tmp/world", call="data:world"
    )
    world.add_argument("out", type=Path, metavar="OUT", help="a folder; CURRICULA_DATA can then name it")
    world.add_argument("--seed", type=int, default=0, help="random seed; each gives another world (default: %(default)s)")

    add_fetch(verbs)
    add_synthesize(verbs)

    tokenize = add_verb(
        verbs,
        "tokenize",
        "tokenise a study's sources into its run folder",
        f"curricula data tokenize {STUDY}",
        call="data:tokenize",
    )
    tokenize.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML), or one of the suite's by name")
    tokenize.add_argument("--run", type=Path, help="the run folder (default: runs/NAME)")
    tokenize.add_argument(
        "--source", action="append", help="only this source; can be repeated (the other sources' datasets must exist too)"
    )
    tokenize.add_argument("--workers", type=at_least(1), help="shards at a time (default: the study's resources.workers)")

    check = add_verb(
        verbs,
        "check",
        "open the tables, benchmarks and probe texts of a study: first rows, counts, duplicates, prompts in the training text",
        f"curricula data check {STUDY}",
        f"curricula data check {STUDY} --run runs/demo",
        call="data:check",
        details="With --run, the training text is that of the run's shards, if it has them. The result goes to "
        "contamination.csv in the run folder, and the report shows it beside each benchmark.",
    )
    check.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML), or one of the suite's by name")
    check.add_argument("--run", type=Path, help="read the data of this run folder")
    check.add_argument("--documents", type=at_least(1), metavar="N", help="read only the first N documents of each table")
    add_json_flag(check)

    inspect = add_verb(
        verbs,
        "inspect",
        "show counts, lengths, tag rate and a document or sample of a shard",
        "curricula data inspect runs/demo/data/shards/unsafe-tagged/00000 --sample 3",
        call="data:inspect",
    )
    inspect.add_argument(
        "prefix", type=Path, metavar="SHARD", help="a shard, without suffix, or a source's folder (its first shard)"
    )
    inspect.add_argument("--tokenizer", type=Path, help="the tokenizer (default: that of the run that holds the shard)")
    shown = inspect.add_mutually_exclusive_group()
    shown.add_argument("--document", type=int, metavar="K", help="decode this document (default: 0)")
    shown.add_argument("--sample", type=int, metavar="K", help="decode this sample of the shard, as training cuts it")
    inspect.add_argument("--sequence-length", type=at_least(1), metavar="TOKENS", help="length of a sample (default: 2048)")
    inspect.add_argument("--verify", action="store_true", help="compare the tokens with the manifest's hash")
    add_json_flag(inspect)


def _add_model_verbs(verbs: argparse._SubParsersAction) -> None:
    export = add_verb(
        verbs,
        "export",
        "convert a Megatron checkpoint to a Hugging Face folder",
        "curricula export full-20 out/",
        "curricula export runs/demo/pretrain/full-20/checkpoints/step_00000500 out/",
        call="results:export",
    )
    checkpoint = "a step's folder, a training's (for its latest step), or a branch of the newest run, such as full-20"
    export.add_argument("checkpoint", type=Path, metavar="CKPT", help=checkpoint)
    export.add_argument("out", type=Path, metavar="OUT", help="the Hugging Face folder to make")
    export.add_argument("--tokenizer", type=Path, help="the tokenizer to add (default: that of the checkpoint's run)")

    load = add_verb(
        verbs,
        "import",
        "convert a Hugging Face folder or a GGUF file to a Megatron checkpoint",
        "curricula import models/SmolLM2-135M out/checkpoints",
        call="results:import_checkpoint",
    )
    load.add_argument("source", metavar="HF", help="a Hugging Face Llama folder, a .gguf file, or a package that holds one")
    load.add_argument("out", type=Path, metavar="OUT", help="the checkpoints folder to make")


if __name__ == "__main__":
    sys.exit(main())
