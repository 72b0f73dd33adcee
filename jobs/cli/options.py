"""What the verbs share: adding a verb to the parser, importing it when it is called, common options, and asking the user."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curricula.errors import UsageError, UserError


class Parser(argparse.ArgumentParser):
    """A parser whose verbs report unknown options themselves (argparse leaves that to `curricula`), and that refuses empty
    paths."""

    def __init__(self, *args: Any, **named: Any):
        super().__init__(*args, **named)
        self.register("type", Path, _path)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        for word in args or ():
            if word.startswith("-") and word.endswith("=--"):  # argparse takes it for an empty list before Python 3.13
                self.error(f"argument {word[:-3]}: '--' is not a value")
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


def _path(text: str) -> Path:
    """The type of a path. An empty one, such as a script's unset variable, is refused: it would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a file or folder, or leave it out")
    return Path(text)


def at_least(least: float, most: float = math.inf) -> Callable[[str], float]:
    """The `type` of an option: a number within these bounds, of the type of `least`."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: give {least:g} {'or more' if most == math.inf else f'to {most:g}'}")
        return value

    number.__name__ = type(least).__name__  # argparse shows it if the text is not such a number
    return number


def require_with(args: argparse.Namespace, option: str, *others: str) -> None:
    """Raise UsageError if `option` was given without any of `others`, with which alone it has an effect."""
    values = [getattr(args, name[2:].replace("-", "_")) for name in (option, *others)]
    value, *rest = [None if each is False or each == () else each for each in values]
    if value is not None and all(each is None for each in rest):
        raise UsageError(f"{option} has an effect only with {' or '.join(others)}; give that as well, or leave {option} out")


def _names(text: str) -> tuple[str, ...]:
    """The type of an option that takes names separated by commas. An empty one, such as a script's unset variable, is
    refused."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} holds an empty name; separate names by one comma, or leave the option out")
    return tuple(found)


class _AddNames(argparse.Action):
    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(dict.fromkeys([*getattr(namespace, self.dest), *values])))


def add_names(parser: argparse._ActionsContainer, option: str, letter: str, help: str, **more: Any) -> None:
    """Add an option that takes names. Given several times, it collects all of them, each once."""
    parser.add_argument(option, metavar=f"{letter},...", type=_names, action=_AddNames, default=(), help=help, **more)


def add_selection(parser: argparse.ArgumentParser, default: str = "all") -> None:
    """Add the flags that `jobs.selection.Selection` reads."""
    group = parser.add_argument_group(f"which elements (default: {default})")
    stages = "only these stages, such as tokenize, pretrain or evaluate, or one that the study names, such as instruct"
    add_names(group, "--stage", "S", stages, dest="stages")
    add_names(group, "--job", "J", "only these jobs, as `curricula status` names them", dest="jobs")
    add_names(group, "--arm", "A", "only these arms, such as full-20; trunk is the shared start of pretraining", dest="arms")
    add_names(group, "--seeds", "N", "only these training seeds, such as 43,44")
    add_names(group, "--point", "P", "only these points of the sweep", dest="points")
    group.add_argument("--from", dest="start", metavar="STAGE|JOB", help="start at this stage or job")


def add_verb(
    verbs: argparse._SubParsersAction,
    name: str,
    summary: str,
    *examples: str,
    call: str = "",
    details: str = "",
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """Add a parser for the verb. Its help is the summary as a sentence, the details and the examples.

    `call` is MODULE:FUNCTION, a function of `jobs/cli/MODULE.py`, which `main` imports when the verb is called.
    """
    sentence = summary[0].upper() + summary[1:] + "."
    parser = verbs.add_parser(
        name,
        help=summary,
        description=textwrap.fill(f"{sentence} {details}", max(20, shutil.get_terminal_size().columns - 2)),
        usage=usage,
        epilog="\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if call:
        parser.set_defaults(verb=call)
    return parser


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """A script that makes `shell` complete the parser's verbs and options, and file names for arguments that are paths."""
    import shtab

    parsers = [parser]
    for one in parsers:  # grows
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.type is Path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)


def add_costs(parser: argparse._ActionsContainer) -> None:
    """Add the flags that `confirm_spending` takes."""
    parser.add_argument(
        "--max-cost",
        type=at_least(0.0),
        default=5.0,
        metavar="DOLLARS",
        help="with prices: ask before spending more (default: %(default)g)",
    )
    parser.add_argument("--yes", action="store_true", help="spend what the estimate says without asking")


def confirm_spending(dollars: float, limit: float, yes: bool, mend: str) -> None:
    """Ask before more than `limit` dollars are spent. Raises UsageError if the answer is no or nobody can answer.

    `mend` names the options that reduce the cost.
    """
    if yes or dollars <= limit:
        return
    cost, most = f"about ${dollars:,.2f}", f"more than --max-cost {limit:g}"
    refused = UsageError(f"cancelled; nothing was spent. Use {mend} to reduce the cost")
    confirm(f"This costs {cost}, {most}. Continue?", UsageError(f"{cost} is {most}; pass --yes, or raise it"), refused)


def confirm(question: str, unattended: UserError, refused: UserError) -> None:
    """Ask the user. Raises `refused` unless the answer is yes, and `unattended` if standard input is not a terminal."""
    if not sys.stdin.isatty():
        raise unattended
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:  # Ctrl-D
        raise KeyboardInterrupt from None
    if answer.strip().lower() not in ("y", "yes"):
        raise refused
