"""Errors that are the user's to mend: one sentence that names the file or key, the value and the mend."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the code is wrong (a file, a disk, a dataset); the command prints the sentence and exits 1."""

    exit_code = 1


class UsageError(UserError):
    """What the user asked for is wrong (a study key, an option); the command prints the sentence and exits 2."""

    exit_code = 2
