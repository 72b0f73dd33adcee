"""A port where the processes of a test meet."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def claimed_port() -> Iterator[int]:
    """A port that stays free, as the next one does, until the test's processes take it: the system gives neither to outgoing
    connections, and a name in the kernel keeps both from other tests, of whatever session."""
    while True:
        port = random.SystemRandom().randrange(12_000, 15_000, 2)  # jobs' own begin above
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0curricula test port {port}")
                for number in (port, port + 1):
                    with socket.socket() as listener:
                        listener.bind(("127.0.0.1", number))
            except OSError:
                continue
            yield port
            return
