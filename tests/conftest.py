import gc
import os
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import HealthCheck, settings
from ports import claimed_port

# Before anything imports torch, and for whatever tests start. Threads of processes that run side by side wait for each other,
# and a sum over several threads is rounded otherwise: tests compare such sums with those of children that have one.
os.environ["OMP_NUM_THREADS"] = "1"

# On a busy machine any example can take seconds.
settings.register_profile("at any pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("at any pace")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Garbage collection skips what was imported."""
    gc.collect()
    gc.freeze()


THREADS = {"after the last collection": 0}


@pytest.fixture(autouse=True)
def few_idle_process_groups() -> Iterator[None]:
    """Process groups of a training have fifty threads, which poll until the collector finds the groups."""
    yield
    process = psutil.Process()
    if process.num_threads() > THREADS["after the last collection"] + 100:
        gc.collect()
        THREADS["after the last collection"] = process.num_threads()


@pytest.fixture(scope="module")
def svg_alone() -> Iterator[None]:
    """A module's reports have each figure as SVG, which the page shows; PNG and PDF take most of a report's time."""
    from figure_files import written_as

    with written_as(".svg"):
        yield


@pytest.fixture
def free_port() -> Iterator[int]:
    with claimed_port() as port:
        yield port


FIRST = ("tests/slurm/", "tests/jobs/test_local_run.py", "forked", "tests/jobs/stages/")
"""Tests that take long, mostly by waiting, and those with this mark. Each of several workers begins with one group; others
steal what is behind it. So no group is left for the end, nor torn from the study, or the fork server, that its tests share.
Tests of stages start a server that has imported less, and so come last."""


@pytest.hookimpl(trylast=True)  # when only the chosen tests are left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    groups: dict[str, list[pytest.Item]] = {name: [] for name in (*FIRST, "")}
    for item in items:
        place = "forked" if item.get_closest_marker("forked") else item.path.relative_to(config.rootpath).as_posix()
        groups[next((name for name in FIRST if place.startswith(name)), "")].append(item)
    rest, workers = groups.pop(""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = len(items) // workers  # pytest-xdist's `worksteal` gives each worker as many to begin with, in this order
    ordered: list[pytest.Item] = []
    for number, group in enumerate(groups.values()):
        filled = min(number, workers - 1) * share - len(ordered)
        ordered += [*rest[: max(0, filled)], *group]
        del rest[: max(0, filled)]
    items[:] = ordered + rest
