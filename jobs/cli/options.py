"""Shared by the verbs: how a verb is described to the parser and imported when it is called, and a question to the user."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from curricula.errors import UserError


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps descriptions, and leaves epilogs, which are examples of several lines, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


@dataclass(frozen=True)
class Verb:
    """A function of `jobs/cli/MODULE.py`, imported when it is called."""

    module: str
    name: str

    def load(self) -> Callable[[argparse.Namespace], int]:
        return getattr(importlib.import_module(f"curricula.jobs.cli.{self.module}"), self.name)

    def __call__(self, args: argparse.Namespace) -> int:
        return self.load()(args)


def add_verb(
    verbs: argparse._SubParsersAction,
    name: str,
    summary: str,
    *examples: str,
    call: Callable[[argparse.Namespace], int] | None = None,
    details: str = "",
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """A parser for the verb. Its help is the summary as a sentence, the details and the examples."""
    sentence = summary[0].upper() + summary[1:] + "."
    parser = verbs.add_parser(
        name,
        help=summary,
        description=f"{sentence} {details}".strip(),
        usage=usage,
        epilog="\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples]),
        formatter_class=HelpFormatter,
    )
    if call:
        parser.set_defaults(verb=call)
    return parser


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script with which `shell` completes the parser's verbs and options, and files where a path is meant."""
    import shtab

    parsers = [parser]
    for one in parsers:  # grows
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def is_confirmed(question: str, unattended: UserError) -> bool:
    """Whether the user answers yes; raises `unattended` if standard input is not a terminal."""
    if not sys.stdin.isatty():
        raise unattended
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
