import random
import socket

import pytest


@pytest.fixture
def free_port() -> int:
    """A port that stays free until the test's processes take it: the system does not give it to outgoing connections, and
    another test hardly draws it."""
    while True:
        port = random.SystemRandom().randrange(12_000, 15_000)  # jobs' own begin above
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
