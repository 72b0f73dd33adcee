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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the Slurm lab first: they mostly wait, and one of several workers that begins with them is done in time."""
    items.sort(key=lambda item: item.path.parent.name != "slurm" or item.path.parents[1].name != "tests")
