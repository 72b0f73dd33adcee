"""The command line: `curricula VERB ...`. Parses words, calls the verb, turns errors into one sentence and an exit code.

Exit codes: 0 well, 1 something outside is wrong or a job failed, 2 the command or the study is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from curricula.errors import UserError
from curricula.jobs.cli.help_text import HelpFormatter
from curricula.terminal import printable

STUDY = "jobs/studies/demo.yaml"


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    words = build_parser(arguments).parse_args(arguments)
    try:
        return words.verb(words)
    except UserError as error:
        print(f"curricula: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # the errors that verbs foresee are UserErrors; this one at least names its file
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        place = f"{printable(str(error.filename))}: " if error.filename else ""
        print(
            f"curricula: {place}{error.strerror or error}; name another file or folder, or free this one",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("curricula: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def build_parser(arguments: Sequence[str] = ("data",)) -> argparse.ArgumentParser:
    """The parser for `arguments`; what `data` and `eval` take, which brings much with it, only where it is asked for."""
    parser = argparse.ArgumentParser(
        prog="curricula",
        description="When should safety enter pretraining? Plan, run and evaluate the study, end to end.",
        epilog=f"A study from start to end on this machine:\n  curricula plan {STUDY}\n"
        f"  curricula submit {STUDY} --cluster local\n  curricula report runs/demo",
        formatter_class=HelpFormatter,
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _study_verbs(verbs)
    data = _add(
        verbs,
        "data",
        "make, tokenise and inspect pretraining data",
        f"curricula data fetch --list\n  curricula data tokenize {STUDY}\n"
        "  curricula data inspect runs/demo/data/shards/unsafe-tagged",
    )
    if "data" in arguments[:1]:
        _data_verbs(data.add_subparsers(metavar="WHAT", required=True))
    _model_verbs(verbs)
    if "eval" in arguments[:1]:
        from curricula.jobs.cli.eval_verbs import add_parser as add_eval

        add_eval(verbs)
    else:
        verbs.add_parser("eval", help="measure attack success and over-refusal of any Hugging Face checkpoint")
    return parser


def _add(
    verbs: argparse._SubParsersAction, name: str, what: str, example: str, verb: Callable | None = None
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=HelpFormatter,
    )
    if verb:
        parser.set_defaults(verb=verb)
    return parser


class _Verbs:
    """The functions of a module, which is imported when one is called: help and mistakes come at once."""

    def __init__(self, module: str):
        self.module = module

    def __getattr__(self, name: str) -> Callable[[argparse.Namespace], int]:
        return lambda words: getattr(importlib.import_module(self.module), name)(words)


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def _study_verbs(verbs: argparse._SubParsersAction) -> None:
    from curricula.jobs.cli.cancel_verb import add_parser as add_cancel
    from curricula.jobs.cli.logs_verb import add_parser as add_logs
    from curricula.jobs.cli.retry_verb import add_parser as add_retry
    from curricula.jobs.cli.status_verb import add_parser as add_status
    from curricula.jobs.slurm.options import add_options as add_slurm_options

    do = _Verbs("curricula.jobs.cli.study_verbs")

    plan = _add(
        verbs, "plan", "show what a study will do: arms, tokens, jobs, GPU-hours", f"curricula plan {STUDY}", do.plan
    )
    plan.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML)")
    plan.add_argument("--run", type=Path, help="take source sizes from this run folder (default: runs/NAME)")
    _json_flag(plan)

    submit = _add(
        verbs,
        "submit",
        "run a study, or go on with one that was interrupted; finished elements are not redone",
        f"curricula submit {STUDY} --cluster local\n"
        "  curricula submit jobs/studies/paper.yaml --cluster slurm --profile env/profiles/h100-4x8.yaml --dry-run",
        do.submit,
    )
    submit.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML)")
    submit.add_argument(
        "--cluster", choices=["local", "slurm"], default="local", help="local: processes on this machine (default)"
    )
    submit.add_argument("--run", type=Path, help="the run folder (default: runs/NAME, or the profile's)")
    add_slurm_options(submit)

    render = _add(
        verbs,
        "render",
        "write the study's jobs as plain sbatch scripts, with a script that submits them",
        "curricula render jobs/studies/paper.yaml /scratch/paper/scripts --profile env/profiles/h100-4x8.yaml",
        do.render,
    )
    render.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML)")
    render.add_argument("out", type=Path, metavar="OUT", help="the folder for the scripts")
    render.add_argument("--profile", type=Path, required=True, metavar="P", help="the site's profile, of env/profiles/")
    render.add_argument(
        "--run", type=Path, help="the run folder, on a disk that all nodes see (default: the profile's)"
    )

    for add_parser in (add_status, add_logs, add_retry, add_cancel):
        add_parser(verbs)

    report = _add(
        verbs, "report", "build the page with figures and tables from a run", "curricula report runs/demo", do.report
    )
    report.add_argument("run", type=Path, metavar="RUN", help="a run folder; unfinished ones show what is missing")


def _data_verbs(kinds: argparse._SubParsersAction) -> None:
    from curricula.jobs.cli.fetch_verb import add_parser as add_fetch
    from curricula.jobs.cli.synthesize_verb import add_parser as add_synthesize

    do = _Verbs("curricula.jobs.cli.data_verbs")
    world = _add(
        kinds, "world", "write the fictional world's datasets to a folder", "curricula data world /tmp/world", do.world
    )
    world.add_argument("out", type=Path, metavar="OUT", help="a folder; CURRICULA_DATA can then name it")
    world.add_argument("--seed", type=int, default=0, help="another seed, another world (default: %(default)s)")

    add_fetch(kinds)
    add_synthesize(kinds)

    tokenize = _add(
        kinds,
        "tokenize",
        "tokenise a study's sources into its run folder",
        f"curricula data tokenize {STUDY}",
        do.tokenize,
    )
    tokenize.add_argument("study", type=Path, metavar="STUDY", help="a study file (YAML)")
    tokenize.add_argument("--run", type=Path, help="the run folder (default: runs/NAME)")
    tokenize.add_argument(
        "--source",
        action="append",
        help="only this source; may be given again (the others' datasets must still be there)",
    )
    tokenize.add_argument("--workers", type=int, help="shards at a time (default: the study's resources.workers)")

    inspect = _add(
        kinds,
        "inspect",
        "show counts, lengths, tag rate and a document or sample of a shard",
        "curricula data inspect runs/demo/data/shards/unsafe-tagged/00000 --sample 3 --sequence-length 128",
        do.inspect,
    )
    inspect.add_argument(
        "prefix",
        type=Path,
        metavar="SHARD",
        help="a shard, without .bin or .idx, or a source's folder (its first shard)",
    )
    inspect.add_argument("--tokenizer", type=Path, help="default: the tokenizer of the run the shard lies in")
    shown = inspect.add_mutually_exclusive_group()
    shown.add_argument("--document", type=int, metavar="K", help="decode this document (default: 0)")
    shown.add_argument("--sample", type=int, metavar="K", help="decode this sample of the shard, as training cuts it")
    inspect.add_argument("--sequence-length", type=int, default=2048, help="tokens of a sample (default: 2048)")
    inspect.add_argument("--verify", action="store_true", help="compare the tokens with the manifest's hash")
    _json_flag(inspect)


def _model_verbs(verbs: argparse._SubParsersAction) -> None:
    do = _Verbs("curricula.jobs.cli.model_verbs")
    export = _add(
        verbs,
        "export",
        "convert a Megatron checkpoint to a Hugging Face folder",
        "curricula export runs/demo/pretrain/full-20/checkpoints out/ --tokenizer runs/demo/data/tokenizer",
        do.export,
    )
    export.add_argument(
        "checkpoint", type=Path, metavar="CKPT", help="a step folder, or a checkpoints folder (its latest)"
    )
    export.add_argument("out", type=Path, metavar="OUT", help="the Hugging Face folder to make")
    export.add_argument("--tokenizer", type=Path, required=True, help="tokenizer folder to put beside the weights")

    load = _add(
        verbs,
        "import",
        "convert a Hugging Face folder or a GGUF file to a Megatron checkpoint",
        "curricula import models/SmolLM2-135M out/checkpoints",
        do.import_,
    )
    load.add_argument(
        "source", metavar="HF", help="a Hugging Face Llama folder, a .gguf file, or a package that holds one"
    )
    load.add_argument("out", type=Path, metavar="OUT", help="the checkpoints folder to make")


if __name__ == "__main__":
    sys.exit(main())
