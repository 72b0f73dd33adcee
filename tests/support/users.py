"""Being another user for a while, which only root can."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")


@contextlib.contextmanager
def acting_as(user: int, *groups: int) -> Iterator[None]:
    """Within the block this process has the rights of `user`, whose own group has the same number. Import nothing new there."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)
