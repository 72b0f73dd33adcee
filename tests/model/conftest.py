import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_idle_process_groups() -> Iterator[None]:
    """Process groups of a training have threads that poll until the collector finds the groups: fifty for each training.

    What is still alive, as what a test was the first to import, is not looked at again.
    """
    yield
    gc.collect()
    gc.freeze()
