"""Formats text, times and counts for a terminal, and replaces what a terminal must not show or obey."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import IO, TYPE_CHECKING, Any

from curricula.secrets import without_userinfo

if TYPE_CHECKING:
    from rich.console import Console

READER_LEFT = 141
"""Exit code if nobody reads standard output any more: that of a program which SIGPIPE has ended, as shells report it."""
LONGEST = 500
"""Length to which `one_line` shortens a text by default."""
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""Matches escape sequences: colours, cursor movements, titles and links."""
_OBEYED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\x1b(?!\\[[0-9;?]*[A-Za-z])"
)
"""Matches what this package never sends to a terminal: control characters, marks that reverse the order of letters, and escape
sequences other than those for colours and the cursor, which `rich` sends."""


def printable(text: str) -> str:
    """`text` with its control characters replaced: a terminal would obey them, and documents and logs can contain any."""
    if text.isprintable():  # the usual case, quickly
        return text
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def one_line(text: str, longest: int = LONGEST) -> str:
    """`text` on one line of at most `longest` characters, with control characters and passwords in URLs replaced."""
    line = printable(without_userinfo(" ".join(text.split())))
    return line if len(line) <= longest else f"{line[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def json_text(value: Any) -> str:
    """`value` as ASCII JSON with DEL escaped too, so that a terminal obeys none of it."""
    return json.dumps(value, indent=1).replace("\x7f", "\\u007f")


class _Guarded:
    """A text stream that replaces what a terminal would obey, what its encoding lacks, and passwords in URLs.

    If the reader of standard output, such as `head`, stops reading, the process ends without a message.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        shown = _OBEYED.sub("\N{REPLACEMENT CHARACTER}", without_userinfo(text))
        with self._until_the_reader_leaves():
            try:
                self._stream.write(shown)
            except UnicodeEncodeError:
                self._stream.write(shown.encode(self._stream.encoding, "replace").decode(self._stream.encoding))
        return len(text)

    def flush(self) -> None:
        with self._until_the_reader_leaves():
            self._stream.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    @contextlib.contextmanager
    def _until_the_reader_leaves(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # takes what is left to write
            if self._stream is sys.__stdout__:  # not for standard error: an unread error is still an error
                sys.exit(READER_LEFT)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Guard standard output and standard error for all writers: texts of servers, models and datasets can contain anything."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `>&-`: the next file to be opened would take its place
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if not os.environ.get("COLUMNS", "1").strip("0"):  # the width is unknown, and `rich` would print nothing
        del os.environ["COLUMNS"]
    with contextlib.redirect_stdout(_Guarded(sys.stdout)), contextlib.redirect_stderr(_Guarded(sys.stderr)):
        yield


def folded(sentence: str, stream: IO[str] | None) -> str:
    """A sentence for `stream`: broken between words into lines for a terminal, unchanged for files and programs."""
    if not stream or not stream.isatty():
        return sentence
    width = shutil.get_terminal_size().columns
    lines = [textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in sentence.splitlines()]
    return "\n".join(lines)


def say(console: Console, sentence: str, style: str | None = None) -> None:
    """Print a sentence on a `rich` console, `folded`."""
    console.print(folded(sentence, console.file), style=style, markup=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """A duration as 2:03 or 1:02:03, and from one day on as 3d 04:05; a dash if it is not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days:
        return f"{days}d {hours_of_day:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def fixed(value: float, digits: int, sign: str = "", times: int = 1) -> str:
    """`value` multiplied by `times`, with `digits` decimals. With the `sign` "+", positive numbers get a sign too.

    Ties round away from zero, as JavaScript and most people round them; Python's formats round them to even digits. The value
    is first rounded to six decimals, as in tables and the page's scripts: a mean over seeds of 0.41249999999999998 is a tie
    there.
    """
    if not math.isfinite(value):
        return f"{value:{sign}}"
    exact = Decimal(round(float(value), 6) * times)
    return f"{exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, Context(prec=400)):{sign}f}"


def plural(number: int, thing: str) -> str:
    """`number` of `thing`: 1 element, 2,000 elements."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def age(seconds: float) -> str:
    """A duration in its largest unit: 8s, 3m, 5h, 2d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def count(number: float) -> str:
    """A number with three digits and a unit: 950, 12.3k, 1.71B, 600B; a dash if it is not finite."""
    if not math.isfinite(number):
        return "-"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f}{unit}"
    return f"{number:.0f}"
