"""Tells somebody when an element failed or the study is done, by the command that the cluster profile names as `notify`.

The command is run without a shell. It reads one line on its standard input and finds CURRICULA_EVENT (failed or done),
CURRICULA_RUN and CURRICULA_ELEMENT in its environment, which holds no variable whose name sounds like a secret's. Whatever it
does, the job goes on.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Literal

from curricula.jobs.monitor.logs import note
from curricula.jobs.monitor.secret_names import SECRET
from curricula.terminal import one_line

PATIENCE_S = 30.0
LONGEST = 500
"""Characters of a message: it may go to a telephone."""

Event = Literal["failed", "done"]


def notify(command: str | None, event: Event, run: Path, element: str, message: str) -> None:
    """Tell `message` of an element by `command`; nothing without one."""
    if not command:
        return
    plain = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    told = {"CURRICULA_EVENT": event, "CURRICULA_RUN": str(run), "CURRICULA_ELEMENT": element}
    line = one_line(f"{run.name}: {element} {event}{': ' if message else ''}{message}")[:LONGEST]
    try:
        done = subprocess.run(
            shlex.split(command), input=line + "\n", env={**plain, **told}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        problem = one_line(done.stderr)[-200:] or f"exit code {done.returncode}" if done.returncode else ""
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a quotation that does not end
        problem = one_line(str(error))
    if problem:
        note(f"the notification failed: {problem}")
