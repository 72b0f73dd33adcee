"""Being another user for a while, which only root can."""

from __future__ import annotations

import contextlib
import ctypes
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

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


def in_a_container(work: Callable[[], None], user: int, *groups: int) -> bool:
    """Whether `work` succeeds in a child with the rights of `user`, in a namespace that knows no other user or group, as
    containers without root have."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups(groups)
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            libc = ctypes.CDLL(None)
            libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: otherwise /proc/self is root's
            if libc.unshare(0x10000000):  # CLONE_NEWUSER
                os._exit(77)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{user} {user} 1")
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 77:
        pytest.skip("this machine makes no user namespaces")
    return code == 0
