"""A launcher with an element that saves when it is asked to stop: `python stopped_group.py FOLDER SIGNAL`.

Once the element has begun, its whole group gets the signal: TERM as from `timeout` or at the end of an allocation, or HUP, and
again while it saves, as when a terminal is closed. Start it in a group of its own.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from curricula.jobs import local
from curricula.jobs.run import Run
from curricula.model.runtime.stopping import listening


def element(root: Path) -> None:
    local._begin(root, "prepare", "prepare")
    with listening() as stop:
        (root / "begun").touch()
        while not stop:
            time.sleep(0.01)
        time.sleep(0.5)  # a save takes its time
        (root / "saved").touch()


if __name__ == "__main__":
    root = Path(sys.argv[1])
    Run(root).element("prepare", "prepare").mkdir(parents=True)
    local.stop_on_signals()
    process = local._forkserver(1, False, root / "imports.log").Process(target=element, args=(root,))
    process.start()
    try:
        while not (root / "begun").exists():
            time.sleep(0.01)
        os.killpg(0, signal.Signals[sys.argv[2]])
        time.sleep(3600)
    except KeyboardInterrupt:
        if sys.argv[2] == "SIGHUP":
            threading.Timer(0.2, os.killpg, (0, signal.SIGHUP)).start()  # while the element saves
        local._stop([process])
    sys.exit(process.exitcode)
