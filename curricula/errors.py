"""Errors that the user can correct. Each message is a sentence that names the file or key, the value and the correction.

Any function that reads user input can raise one, even if its docstring does not say so.
"""

from __future__ import annotations

import errno
import os


def first_line(error: BaseException) -> str:
    """The first line of a library error's message, or the error's class name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UserError(Exception):
    """Something outside the code is wrong, such as a file, disk or dataset. The command prints the message and exits with 1."""

    exit_code = 1


class StorageError(UserError):
    """A file could not be read or written but may be undamaged: another start, perhaps on another machine, can succeed."""

    exit_code = os.EX_IOERR
    """Exit code 74 of an element's process; a command exits with 1."""


class UsageError(UserError):
    """The user's request is wrong, such as a study key or an option. The command prints the message and exits with 2."""

    exit_code = 2


def load_failure(error: BaseException) -> type[UserError]:
    """The class of the error to raise if a library cannot load files. An error number is the system's, not the library's, and
    says nothing about the files, unless they are missing or must not be read."""
    about_files = (None, errno.ENOENT, errno.EACCES)
    return StorageError if isinstance(error, OSError) and error.errno not in about_files else UserError
