"""The options that `curricula submit` has for Slurm. Apart from the submission, so that showing help imports nothing of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from curricula.errors import UsageError


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on a Slurm cluster")
    group.add_argument(
        "--profile", metavar="P", type=Path, help="the site's profile, such as env/profiles/h100-4x8.yaml"
    )
    group.add_argument("--only", metavar="STAGE", type=_names, default=(), help="only these stages or jobs, by commas")
    group.add_argument("--from", dest="start", metavar="STAGE", help="only what comes from this stage or job on")
    group.add_argument("--arms", metavar="A,B", type=_names, default=(), help="only these arms, and the trunk to them")
    group.add_argument("--dry-run", action="store_true", help="show jobs and sbatch scripts; submit and write nothing")
    group.add_argument("--yes", action="store_true", help="do not ask, however many GPU-hours it is")


def _names(text: str) -> tuple[str, ...]:
    """The names in `text`; none at all would mean everything, which an empty variable in a script hardly does."""
    names = tuple(name for name in text.split(",") if name)
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; give names, or leave the option out for all")
    return names


def check_local(words: argparse.Namespace) -> None:
    """Refuse options that mean nothing on this machine alone."""
    given = [name for name, value in (("--profile", words.profile), ("--only", words.only), ("--from", words.start),
             ("--arms", words.arms), ("--dry-run", words.dry_run)) if value]  # fmt: skip
    if given:
        raise UsageError(f"{given[0]} needs --cluster slurm; `curricula plan` shows what a study will do here")
