"""One round: submit the study, disturb it, do what a user would do until it is finished, and compare the results."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import slurm_studies as studies
import yaml
from compared_runs import differences, repeated, results, too_early
from events import EVENTS, JOBS, Disturbed, Missed

BY_ITSELF, BY_RETRY, BY_SUBMIT = "went on by itself", "needed `retry`", "needed `submit`"
BY_ADVICE = "needed what the message said"
NOT_HIT, NOT_EQUAL, STUCK, STALE, BROKEN = "came too late", "not equal", "stuck", "stale", "broke"
FINE = (BY_ITSELF, BY_RETRY, BY_SUBMIT, BY_ADVICE, NOT_HIT)
DAMAGED = re.compile(r"(/\S+/(step_\d+))/\S+: .*delete \2 if it is still there, and run")
MOST_COMMANDS = 4
"""Number of `retry` and `submit` commands after which a round counts as stuck."""
PATIENCE_S = 900
"""Time limit of a round."""
REPORT_S = 90
"""Interval at which nodes are made to report what they run. A killed controller comes back with jobs that have since ended, and
it does not hear of a batch script whose daemon was killed. By itself, it asks only after half an hour."""
ORPHAN_S = 60
"""How long an element can run without a job. Its processes may outlive the batch script."""
DISK_MB = 400


@dataclass(frozen=True)
class Setting:
    """What all rounds share. Profiles and expected results are by number of ranks: only with the same number are runs equal to
    the bit."""

    folder: Path
    study: Path
    profiles: dict[int, Path]
    prepared: Path
    """A run folder that holds the data."""
    expected: dict[int, dict[str, str]]


@dataclass
class Outcome:
    number: int
    events: list[str]
    ranks: int
    verdict: str = BROKEN
    notes: list[str] = field(default_factory=list)
    """What events and the simulated user have done to the run."""
    missed: list[str] = field(default_factory=list)
    """The events whose moment never came."""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    kept: str = ""
    """The run folder of a round that did not end well."""

    def line(self) -> str:
        text = f"round {self.number} ({self.seconds:.0f} s): {self.verdict}. {'; '.join(self.notes)}"
        return "\n    ".join([text, *(problem[:600] for problem in self.problems[:6]), *filter(None, [self.kept])])


class Stuck(Exception):
    """The run does not finish, although the user has done what the commands say."""


def prepare(labs: Sequence, folder: Path) -> Setting:
    """Make the data, and run the study undisturbed, with one rank and with two."""
    study = _write_study(folder)
    prepared, profiles = studies.prepared(labs[0], folder, study), {}
    for ranks in (1, 2):
        size = {"nodes": ranks, "gpus_per_node": 1}
        profiles[ranks] = studies.write_profile(folder / f"ranks-{ranks}", lead_time_s=25, stages={"pretraining": size})

    def undisturbed(ranks: int) -> dict[str, str]:
        root = folder / f"undisturbed-{ranks}"
        run = Disturbed(labs[ranks % len(labs)], root, study, profiles[ranks], random.Random(0))
        shutil.copytree(prepared, root)
        run.submit()
        commands = _drive(run, time.monotonic() + 2 * PATIENCE_S)
        assert not commands, f"the undisturbed run needed {run.notes}"
        return results(root)

    with ThreadPoolExecutor(len(labs)) as pool:
        expected = dict(zip(profiles, pool.map(undisturbed, profiles)))
    shutil.copytree(folder / "undisturbed-1" / "code", prepared / "code")  # compiled once for all rounds
    return Setting(folder, study, profiles, prepared, expected)


def _write_study(folder: Path) -> Path:
    """Write the smallest study with every dependency: two arms that leave a trunk half-way, their tuning, an attack on each."""
    path = studies.write_study(folder, "chaos", steps=16, batch=8, micro_batch=4)
    raw = yaml.safe_load(path.read_text())
    raw["curriculum"]["starts"] = [0.5]
    raw["curriculum"]["interventions"]["data"] = {"web": 60, "stories": 10, "math": 10, "safeweb": 20}
    tasks = {"base": [], "instruct": ["attacks-topk"], "benign": []}
    raw["evaluation"].update(gcg=None, probes=None, benchmarks=["tdc"], tasks=tasks)
    raw["resources"]["hang_minutes"] = 0.25
    path.write_text(yaml.safe_dump(raw))
    return path


def play(setting: Setting, lab, number: int, seed: int, events: list[str]) -> Outcome:
    """Play a round, and restore the lab."""
    draw, began = random.Random(f"{seed} round {number}"), time.monotonic()
    ranks = draw.choice(sorted(set.intersection(*(set(EVENTS[name].ranks) for name in events))))
    outcome, root = Outcome(number, events, ranks), setting.folder / f"round-{number}"
    run = Disturbed(lab, root, setting.study, setting.profiles[ranks], draw, outcome.notes)
    try:
        root.mkdir()
        if "disk-full" in events:
            options = f"size={DISK_MB}m,mode=700"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "curricula-chaos", root], check=True)
        shutil.copytree(setting.prepared, root, dirs_exist_ok=True)
        outcome.verdict = _verdict(run, setting, outcome, began + PATIENCE_S)
    except Stuck as stuck:
        outcome.verdict = STUCK
        outcome.problems.append(str(stuck))
    except Exception:
        outcome.problems.append(traceback.format_exc()[-1500:])
    outcome.seconds = round(time.monotonic() - began, 1)
    if outcome.verdict not in FINE:
        root.with_suffix(".txt").write_text(f"{outcome.line()}\n{lab.state()}\n{studies.logs(root)}")
    try:
        run.clear()
    except Exception:
        outcome.problems.append(f"the lab was not left as it was: {traceback.format_exc()[-500:]}")
    if outcome.verdict not in FINE:
        outcome.kept = str(root.with_name(f"{root.name}-kept"))
        shutil.copytree(root, outcome.kept, ignore=shutil.ignore_patterns("filler", "code"))
    if os.path.ismount(root):
        subprocess.run(["umount", "--lazy", root], check=False)
    shutil.rmtree(root, ignore_errors=True)
    return outcome


def _verdict(run: Disturbed, setting: Setting, outcome: Outcome, deadline: float) -> str:
    if all(EVENTS[name].moment for name in outcome.events):
        run.submit()
    for name in outcome.events:
        try:
            run.notes.append(f"{name}: {EVENTS[name].strike(run)}")
        except Missed:
            outcome.missed.append(name)
    commands = _drive(run, deadline)
    outcome.problems += [f"left over: {key} as processes {pids}" for key, pids in run.processes().items()]
    outcome.problems += repeated(run.root) + differences(setting.expected[outcome.ranks], results(run.root))
    if outcome.problems:
        return NOT_EQUAL
    if early := too_early(run.root, JOBS):
        outcome.problems += early
        return STALE
    if outcome.missed == outcome.events:
        return NOT_HIT
    if "submit" in commands:
        return BY_SUBMIT
    return BY_RETRY if commands else BY_ITSELF


def _drive(run: Disturbed, deadline: float) -> list[str]:
    """Do what a user would do until the study is finished, and return the commands that were needed. Raises Stuck."""
    commands: list[str] = []
    quiet_since, reported = 0.0, time.monotonic()
    while True:
        if time.monotonic() > reported + REPORT_S:
            reported = time.monotonic()
            run.lab.report()
        if time.monotonic() > deadline:
            raise Stuck(f"not finished in time: {run.queue()} {_open(run)}")
        if queue := run.queue():
            quiet_since = 0.0
            for task in [line.split()[0] for line in queue if "held" in line.lower()]:
                run.lab.run("scontrol", "release", task, check=False)  # as `status` advises for such a job
                run.notes.append(f"user: scontrol release {task}")
                commands.append("advice")
            time.sleep(1)
            continue
        left, errors = _open(run)
        if not left:
            return commands
        quiet_since = quiet_since or time.monotonic()
        if "running" in left.values() and time.monotonic() < quiet_since + ORPHAN_S:
            time.sleep(2)
            continue
        if len(commands) - commands.count("advice") == MOST_COMMANDS:
            raise Stuck(f"after {', '.join(commands)}: {left} {errors}")
        for folder in {found[1] for error in errors if (found := DAMAGED.search(error))}:
            shutil.rmtree(folder, ignore_errors=True)
            run.notes.append(f"user: rm -r {folder.removeprefix(str(run.root))}")
            commands.append("advice")
        verb = "retry" if {"failed", "cancelled", "interrupted", "stale"} & set(left.values()) else "submit"
        output = run.submit() if verb == "submit" else studies.curricula(run.lab, "retry", run.root, check=False)
        commands.append(verb)
        error = next((line[:200] for line in output.splitlines() if "curricula:" in line), "")
        states = ", ".join(sorted({f"{name.split('/')[0]} {state}" for name, state in left.items()}))
        run.notes.append(f"user: {verb} ({states}{'; ' + error if error else ''})")
        quiet_since = 0.0


def _open(run: Disturbed) -> tuple[dict[str, str], list[str]]:
    """The state of every element that is not done, and the errors, according to `curricula status`."""
    output = studies.curricula(run.lab, "status", run.root, "--json", check=False)
    try:
        elements = json.loads(output[output.index("[\n") : output.rindex("]") + 1])
    except ValueError:
        return {"the run": f"unknown: {output[-300:]}"}, []
    left = [element for element in elements if element["job"] in JOBS and element["state"] != "done"]
    states = {f"{element['job']}/{element['label']}": element["state"] for element in left}
    return states, [element["error"] for element in left]
