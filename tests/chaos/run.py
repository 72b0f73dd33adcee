"""Disturbs a small study at random on a real Slurm: does it always end with the numbers of an undisturbed run?

    python tests/chaos/run.py --rounds 100 --seed 1 --json chaos.json --markdown chaos.md
    python tests/chaos/run.py --only 17 --seed 1                  # repeats that round
    python tests/chaos/run.py --rounds 5 --seed 1 --event hang    # events of one kind

Like the lab (env/slurm-lab), it needs root on Debian. A round submits the study to a lab, disturbs it once or twice while it
runs, and then does what a user would do: `curricula status`, then `retry` or `submit`, at most four times. The kinds of events
take turns; their moments and victims follow from the seed and the number of the round. See docs/reliability.md.

The exit code is 0 only if every round ends with the results of the undisturbed run and nothing is stale. The folders of rounds
that end otherwise are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import queue
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent / "support"), str(HERE.parent / "slurm")]

from conftest import joined_lab, why_not  # noqa: E402
from events import EVENTS  # noqa: E402
from rounds import BY_ITSELF, FINE, NOT_HIT, Outcome, play, prepare  # noqa: E402

from curricula import durable  # noqa: E402

WITH_TWO = 0.3
"""Share of the rounds with a second event."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="play only the rounds with these numbers")
    parser.add_argument("--event", choices=EVENTS, action="append", help="only events of this kind, one per round")
    parser.add_argument("--labs", type=int, default=3, help="rounds to play at the same time, each in its own lab")
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after each round; rounds in it are not played again")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="where to write the final table")
    args = parser.parse_args()
    if reason := why_not():
        print(f"chaos: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the labs are removed
    outcomes, before = _played(args)
    began, folder = time.monotonic() - 60 * before, Path(tempfile.mkdtemp(prefix="curricula-chaos-"))
    _play_all(folder, args, outcomes, began)
    is_fine = all(outcome.verdict in FINE for outcome in outcomes)
    if is_fine:
        shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    table = markdown(outcomes, minutes, args.seed)
    print(f"\n{table}")
    if args.markdown:
        args.markdown.write_text(table)
    return 0 if is_fine else 1


def _played(args: argparse.Namespace) -> tuple[list[Outcome], float]:
    """The rounds that an earlier call has left in the JSON file, and how many minutes they took."""
    if not args.json or not args.json.exists():
        return [], 0.0
    saved = json.loads(args.json.read_text())
    if saved["seed"] != args.seed:
        sys.exit(f"chaos: {args.json} holds rounds with seed {saved['seed']}, not {args.seed}; name another file")
    return [Outcome(**outcome) for outcome in saved["rounds"]], saved["minutes"]


def _keep(outcomes: Sequence[Outcome], minutes: float, args: argparse.Namespace) -> None:
    if args.json:
        value = {"seed": args.seed, "minutes": minutes, "events": counts(outcomes)}
        value["rounds"] = [asdict(outcome) for outcome in outcomes]
        durable.write_text(args.json, json.dumps(value, indent=1) + "\n")


def _play_all(folder: Path, args: argparse.Namespace, outcomes: list[Outcome], began: float) -> None:
    """Play the rounds that are left, and add their outcomes in the order in which they end. Labs run as long as rounds do."""
    played = {outcome.number for outcome in outcomes}
    numbers = [number for number in args.only or range(1, args.rounds + 1) if number not in played]
    if not numbers:
        return
    free: queue.SimpleQueue = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        labs = [stack.enter_context(joined_lab(uuid.uuid4().hex[:8])) for _ in range(min(args.labs, len(numbers)))]
        print(f"{len(labs)} labs are up; the undisturbed run …", flush=True)
        setting = prepare(labs, folder)
        print(f"{len(setting.expected[1])} results to compare in {folder}", flush=True)
        for lab in labs:
            free.put(lab)

        def one(number: int) -> Outcome:
            lab = free.get()
            try:
                return play(setting, lab, number, args.seed, _events_of(number, args))
            finally:
                free.put(lab)

        pool = ThreadPoolExecutor(len(labs))
        stack.callback(pool.shutdown, cancel_futures=True)
        for playing in as_completed([pool.submit(one, number) for number in numbers]):
            outcomes.append(playing.result())
            _keep(outcomes, (time.monotonic() - began) / 60, args)
            all_of_them = len(played) + len(numbers)
            print(f"{time.strftime('%H:%M:%S')} {len(outcomes):3}/{all_of_them} {outcomes[-1].line()}", flush=True)


def _events_of(number: int, args: argparse.Namespace) -> list[str]:
    """The kinds of events of a round. All kinds take turns, each time in a different order."""
    if args.event:
        return [args.event[(number - 1) % len(args.event)]]
    turn, place = divmod(number - 1, len(EVENTS))
    first = random.Random(f"{args.seed} turn {turn}").sample(list(EVENTS), len(EVENTS))[place]
    draw = random.Random(f"{args.seed} second {number}")
    if draw.random() >= WITH_TWO:
        return [first]
    possible = [n for n, e in EVENTS.items() if n != first and e.moment and set(e.ranks) & set(EVENTS[first].ranks)]
    return [first, draw.choice(possible)]


def counts(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """For each kind of event, the number of rounds by outcome. A round with two events counts for both."""
    counted: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        for name in outcome.events:
            counted.setdefault(name, Counter())[NOT_HIT if name in outcome.missed else outcome.verdict] += 1
    return {name: dict(counted[name]) for name in EVENTS if name in counted}


def markdown(outcomes: Sequence[Outcome], minutes: float, seed: int) -> str:
    """The final table, with a line above it about the rounds."""
    outcomes_of = counts(outcomes)
    columns = [*FINE, *sorted({verdict for counted in outcomes_of.values() for verdict in counted} - set(FINE))]
    rows = [["event", "rounds", *columns], ["---", *["---:"] * (len(columns) + 1)]]
    for name, counted in outcomes_of.items():
        rows.append([EVENTS[name].title, str(sum(counted.values())), *(str(counted.get(c, "")) for c in columns)])
    total = Counter(outcome.verdict for outcome in outcomes)
    rows.append(["**rounds**", str(len(outcomes)), *(str(total.get(c, "")) for c in columns)])
    line = (
        f"{len(outcomes)} rounds with seed {seed} in {minutes:.0f} minutes on {platform.system()} {platform.machine()}, "
        f"{datetime.now(timezone.utc):%Y-%m-%d}: {sum(total[verdict] for verdict in FINE)} ended with the "
        f"results of the undisturbed run, {total[BY_ITSELF]} of them by themselves. A round with two events counts for both."
        "\n\n"
    )
    return line + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
