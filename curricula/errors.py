"""Errors that are the user's to mend: one sentence that names the file or key, the value and the mend."""

from __future__ import annotations

import os


class UserError(Exception):
    """Something outside the code is wrong (a file, a disk, a dataset); the command prints the sentence and exits 1."""

    exit_code = 1


class StorageError(UserError):
    """A file could not be read or written, though it may be whole: another start, perhaps on another machine, may do."""

    exit_code = os.EX_IOERR
    """74"""


class UsageError(UserError):
    """What the user asked for is wrong (a study key, an option); the command prints the sentence and exits 2."""

    exit_code = 2
