"""A Slurm lab of the session's own (env/slurm-lab), for tests that only a real Slurm can answer. Needs root on Debian."""

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from paths import LAB_SCRIPTS

PREFIX = "curricula-lab-"


class Lab:
    """The running lab; its commands need only this environment."""

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        self.environment = {
            **os.environ,
            "CURRICULA_SLURM_LAB": str(folder),
            "CURRICULA_SLURM_LAB_PORT": str(port),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }

    def up(self) -> None:
        self.run(LAB_SCRIPTS / "up")

    def run(self, *words: object, check: bool = True, **options) -> str:
        done = subprocess.run(
            list(map(str, words)), env=self.environment, capture_output=True, text=True, timeout=600, **options
        )
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def pid(self, daemon: str) -> int:
        return int((self.folder / f"{daemon}.pid").read_text())

    def report(self) -> None:
        """Make the nodes tell the controller what they run, as they do by themselves about every half hour.

        `scontrol reconfigure` would not do: it restarts the controller too, which then believes it has just seen every job.
        """
        for daemon in self.folder.glob("slurmd-*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(daemon.read_text()), signal.SIGHUP)

    def state(self) -> str:
        """Queue, nodes and the controller's last words, for the message of a failure."""
        told = self.run("squeue", "--format=%i %P %j %T %r %N", check=False)
        told += self.run("sinfo", "--Node", "--long", check=False)
        log = (self.folder / "log" / "slurmctld.log").read_text(errors="replace")
        return f"{told}\n{log[-4000:]}"

    def preempt(self, task: str) -> bool:
        """A job of a higher partition takes the nodes of a running job for a moment; false where it has just ended."""
        found = self.run("squeue", "--noheader", f"--jobs={task}", "--states=RUNNING", "--format=%D %N", check=False).split()
        if len(found) != 2:
            return False
        words = f"--partition=high --account=research --nodes={found[0]} --nodelist={found[1]} --exclusive --time=1"
        job = self.run("sbatch", "--parsable", *words.split(), "--output=/dev/null", "--wrap=true").strip()
        deadline = time.monotonic() + 300
        while (state := re.search(r"JobState=(\w+)", self.run("scontrol", "show", "job", job))[1]) != "COMPLETED":
            still = state in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING") and time.monotonic() < deadline
            assert still, f"job {job} of the high partition is {state}\n{self.state()}"
            time.sleep(0.25)
        return True


def why_not() -> str:
    """Why no lab can be started here; empty when one can."""
    if os.geteuid() != 0:
        return "the Slurm lab needs root"
    if shutil.which("apt-get") is None and shutil.which("slurmctld") is None:
        return "the Slurm lab needs Debian, or Slurm's programs"
    return ""


@pytest.fixture(scope="session")
def lab():
    """A lab that the workers of one test session share."""
    with joined_lab(os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)[:8]) as found:
        yield found


@pytest.fixture(scope="session")
def _second_lab():
    with joined_lab(uuid.uuid4().hex[:8]) as found:
        yield found


@pytest.fixture
def spare_lab(_second_lab):
    """A lab whose daemons a short test may kill and whose nodes it may fill: the next such test finds it whole and empty."""
    yield _second_lab
    _second_lab.up()
    _second_lab.run("scancel", "--me")


@pytest.fixture
def own_lab():
    """A lab of one test's own, whose daemons it may kill: a controller that dies forgets what it accepted an instant before."""
    with joined_lab(uuid.uuid4().hex[:8]) as found:
        yield found


@contextlib.contextmanager
def joined_lab(name: str):
    """The running lab of that name: the first to come starts it, the last to leave stops it."""
    if why_not():
        pytest.skip(why_not())
    place = Path("/tmp", PREFIX + name)
    users, port = place.with_suffix(".users"), place.with_suffix(".port")
    with _locked(users):
        _clear_abandoned(place)
        if not port.exists():
            port.write_text(str(_free_ports()))
        found = Lab(place, int(port.read_text()))
        found.up()
        users.write_text(users.read_text() + f"{os.getpid()}\n")
    try:
        yield found
    finally:
        with _locked(users):
            left = [pid for pid in users.read_text().split() if pid != str(os.getpid()) and Path("/proc", pid).exists()]
            users.write_text("".join(f"{pid}\n" for pid in left))
            if not left:
                found.run(LAB_SCRIPTS / "down")
                users.unlink()
                port.unlink()


def _free_ports(count: int = 20) -> int:
    """The first of as many ports that nobody listens on, below the ephemeral ones and above those of training."""
    for first in random.sample(range(30_100, 32_700 - count, count), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError("no free ports for a lab")


@contextlib.contextmanager
def _locked(users: Path):
    with open("/tmp/curricula-lab.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        users.touch()
        yield


def _clear_abandoned(own: Path) -> None:
    """Stop labs whose test sessions were killed."""
    for users in Path("/tmp").glob(f"{PREFIX}*.users"):
        place = users.with_suffix("")
        if place != own and not any(Path("/proc", pid).exists() for pid in users.read_text().split()):
            Lab(place, 30100).run(LAB_SCRIPTS / "down", check=False)
            users.unlink(missing_ok=True)
            users.with_suffix(".port").unlink(missing_ok=True)
