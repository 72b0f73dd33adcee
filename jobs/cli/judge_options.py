"""The judge as words on the command line: a name, a YAML file with its settings, and single settings by hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.prompt import Confirm

from curricula.errors import UsageError
from curricula.eval.judges.question import Estimate
from curricula.eval.judges.settings import JUDGES, JudgeConfig, judge_config
from curricula.settings import parse


def add_judge_options(parser: argparse.ArgumentParser, required: bool) -> None:
    group = parser.add_argument_group("the judge", "The key of a server is read from OPENAI_API_KEY alone.")
    group.add_argument(
        "--judge",
        required=required,
        default=None if required else "refusal-phrases",
        metavar="NAME",
        help=f"{', '.join(JUDGES)}, or a YAML file of settings" + ("" if required else " (default: %(default)s)"),
    )
    group.add_argument(
        "--judge-model", metavar="MODEL", help="a folder, a Hugging Face name, or its name on the server"
    )
    group.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server, such as http://node7:8000/v1")
    group.add_argument("--judge-template", metavar="NAME", help="how it is asked (default: the model's or task's own)")
    group.add_argument(
        "--judge-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting, such as requests_per_minute=600, batch_api=true or price_in=0.15; may be given again",
    )
    group.add_argument(
        "--retry-unparsed", action="store_true", help="ask again where this judge's reply was no verdict"
    )
    group.add_argument(
        "--max-cost", type=float, default=5.0, metavar="DOLLARS", help="ask before spending more (default: %(default)g)"
    )
    group.add_argument("--yes", action="store_true", help="spend whatever the estimate says")


def judge_from(words: argparse.Namespace) -> JudgeConfig:
    """The judge that the words describe; raises UsageError naming the option, its value and the mend."""
    given: dict[str, Any] = {"name": words.judge}
    if words.judge not in JUDGES and Path(words.judge).is_file():
        given = _from_file(Path(words.judge))
    for option in ("model", "url", "template"):
        value = getattr(words, f"judge_{option}")
        if value is not None:
            given[option] = value
    for pair in words.judge_set:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"--judge-set {pair}: give KEY=VALUE, such as concurrency=64")
        try:
            given[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"--judge-set {pair}: the value is not YAML; put it into quotes") from None
    if unknown := sorted(map(str, set(given) - set(JudgeConfig.__struct_fields__))):
        known = ", ".join(JudgeConfig.__struct_fields__)
        raise UsageError(f"--judge {words.judge}: unknown field `{unknown[0]}`; choose from {known}")
    try:
        if set(given) == {"name"}:
            return judge_config(given["name"])
    except ValueError as error:
        raise UsageError(f"--judge {words.judge}: {error}") from None
    return parse(given, JudgeConfig, f"--judge {words.judge}")


def look_at_server(settings: JudgeConfig, console: Console) -> None:
    """Say when the judge's server would not answer now; raises UsageError when it has no address.

    That it is not there yet is no error: it may come before it is asked.
    """
    if settings.name == "llm" or settings.url:
        from curricula.eval.judges.served import doubt

        if why := doubt(settings):
            console.print(
                f"judge: {why}; going on, for it may be there when it is asked",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )


def _from_file(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--judge {path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise UsageError(f"--judge {path}: holds no settings; write name: and model: there")
    return value


def confirm_cost(words: argparse.Namespace, estimates: Sequence[Estimate | None], console: Console) -> None:
    """Say what the judge will be asked, and ask before more than --max-cost is spent; raises UsageError on a no."""
    asked = [estimate for estimate in estimates if estimate is not None and estimate.questions]
    if not asked:
        return
    tokens_in, tokens_out = sum(one.tokens_in for one in asked), sum(one.tokens_out for one in asked)
    prices = [one.dollars for one in asked]
    dollars = None if None in prices else sum(price for price in prices if price is not None)
    cost = "prices not given (--judge-set price_in=...)" if dollars is None else f"about ${dollars:,.2f}"
    questions = sum(one.questions for one in asked)
    console.print(
        f"The judge will be asked {questions:,} question{'s' if questions > 1 else ''}: about {tokens_in:,} tokens in and at "
        f"most {tokens_out:,} out, {cost}.",
        soft_wrap=True,
    )
    if words.yes or dollars is None or dollars <= words.max_cost:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"about ${dollars:,.2f} is more than --max-cost {words.max_cost:g}; pass --yes, or raise it")
    if not Confirm.ask("Go on?", default=False, console=console):
        raise UsageError("nothing was asked and nothing spent; --prompts makes it less")
