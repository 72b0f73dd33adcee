"""Errors that the user can correct: one sentence that names the file or key, the value and the correction.

Any function that reads what the user gives may raise one; its docstring need not say so.
"""

from __future__ import annotations

import os


def first_line(error: BaseException) -> str:
    """Of what an error of a library says; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UserError(Exception):
    """Something outside the code is wrong, such as a file, a disk or a dataset. The command prints the sentence and exits 1."""

    exit_code = 1


class StorageError(UserError):
    """A file could not be read or written but may be whole: another start, perhaps on another machine, may succeed."""

    exit_code = os.EX_IOERR
    """74, of an element's process; a command exits 1."""


class UsageError(UserError):
    """The user's request is wrong, such as a study key or an option. The command prints the sentence and exits 2."""

    exit_code = 2
