"""What the training runs recorded, as panels and tables: losses, the curriculum, the tree of the runs, and what they cost.

Reads `pretrain/*/metrics.jsonl` and `tune/*/*/metrics.jsonl`, the `starts.jsonl` beside them (`model/runtime/reporting.py`),
and the `done.json` of finished elements. The plan, as `jobs/estimates.py: describe` returns it, says what was to be done.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from curricula import durable
from curricula.errors import UserError
from curricula.eval.analysis.statistics import grouped
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.panels import INK, Panel, Series
from curricula.eval.report.wording import arm_label

POINTS = 250
"""Points of a curve on the page, at most; each is the mean of the steps that it stands for."""


@dataclass(frozen=True)
class Branch:
    """One line of training: a branch of the pretraining tree, or one model's tuning."""

    name: str
    """Name such as "trunk", "full-20" or "full-20/instruct"."""
    tokens: list[float]
    loss: list[float]
    step: int
    """Last step on record."""
    last_loss: float
    """Loss of that step alone, whereas the last point of the curve is a mean."""
    validation: dict[str, list[tuple[float, float]]]
    """(tokens, loss) by source."""
    device_hours: float
    """Hours of the steps on record, times devices, including the time for which saving held training up."""
    stall_s: float
    """Time for which saving held training up."""
    wait_s: float
    """Time for which training waited for batches."""
    starts: int
    """How often a process began or resumed this training; 0 if an earlier version recorded none."""
    lost_steps: int
    """Steps that had to be trained again because they were not saved when a start ended."""

    @property
    def later_stage(self) -> str:
        """The stage after pretraining that it trains; "" for pretraining."""
        return self.name.partition("/")[2]


@dataclass(frozen=True)
class Training:
    branches: Sequence[Branch]
    plan: Mapping[str, Any]
    """The plan, as `jobs/estimates.py: describe` returns it."""
    seconds: Mapping[str, list[float]]
    """Durations of the finished elements, by stage."""

    @property
    def step_tokens(self) -> int:
        return (self.plan.get("budget") or {}).get("step_tokens", 0)

    def restarts(self, branch: Branch) -> int | None:
        """The starts beyond the first of each segment; None if no starts are on record."""
        if not branch.starts:
            return None
        segments = [segment for segment in self.plan.get("segments", ()) if segment["branch"] == branch.name]
        begun = sum(segment["start_step"] < branch.step for segment in segments)
        return max(0, branch.starts - max(1, begun))


def read_training(run: Path, plan: Mapping[str, Any], tuned: Collection[str] | None = None) -> Training:
    """Read what is recorded of the plan's branches, or of all if it has none, and of the `tuned` models, or of all if None.

    `tuned` names models as ARM/STAGE. The points of a sweep share a run folder, so it can hold more than one report shows.
    """
    planned = {segment["branch"] for segment in plan.get("segments", ())}
    pretraining = {path.parent.name: path for path in sorted(run.glob("pretrain/*/metrics.jsonl"))}
    tuning = {"/".join(path.parts[-3:-1]): path for path in sorted(run.glob("tune/*/*/metrics.jsonl"))}
    metrics = {name: path for name, path in pretraining.items() if name in planned or not planned}
    metrics |= {name: path for name, path in tuning.items() if tuned is None or name in tuned}
    branches = [branch for name, path in metrics.items() if (branch := _branch(name, path))]
    seconds: dict[str, list[float]] = defaultdict(list)
    for job in plan.get("jobs", ()):
        for label in job["elements"]:
            with contextlib.suppress(OSError, UserError, KeyError, TypeError, ValueError):  # not done, or not a mark of ours
                mark = durable.read_json(run / "jobs" / job["name"] / label.replace("/", "+") / "done.json")
                seconds[job["stage"]].append(float(mark["seconds"]))
    return Training(branches, plan, seconds)


def _branch(name: str, path: Path) -> Branch | None:
    """What `path` records of a branch; None if no step is on record."""
    rows = [row for row in durable.read_jsonl(path) if isinstance(row, dict)]
    steps = [row for row in rows if isinstance(row.get("loss"), float) and isinstance(row.get("tokens"), int)]
    if not steps:
        return None
    tokens = {row["step"]: row["tokens"] for row in steps}
    validation: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if isinstance(row.get("validation"), dict) and row["step"] in tokens:  # earlier versions validated before step 1 too
            for source, loss in row["validation"].items():
                validation[source].append((tokens[row["step"]], loss))
    cuts = [i * len(steps) // POINTS for i in range(POINTS + 1)]
    chunks = [steps[start:stop] for start, stop in zip(cuts, cuts[1:]) if start < stop]
    timings = [row.get("timing") or {} for row in steps]
    starts = durable.read_jsonl(path.with_name("starts.jsonl"))
    return Branch(
        name=name,
        tokens=[chunk[-1]["tokens"] for chunk in chunks],
        loss=[round(fmean(row["loss"] for row in chunk), 5) for chunk in chunks],
        step=steps[-1]["step"],
        last_loss=round(steps[-1]["loss"], 5),
        validation=dict(validation),
        device_hours=sum(map(_device_hours, timings)),
        stall_s=sum(timing.get("save_stall_s", 0.0) for timing in timings),
        wait_s=sum(timing.get("data_wait_s", 0.0) for timing in timings),
        starts=len(starts),
        lost_steps=sum(row.get("lost_steps", 0) for row in starts),
    )


def _device_hours(timing: Mapping[str, float]) -> float:
    """The device-hours of a step, including the time for which saving held training up."""
    devices = round(timing.get("tokens_per_second", 1.0) / (timing.get("tokens_per_second_per_device") or 1.0))
    return (timing.get("seconds", 0.0) + timing.get("save_stall_s", 0.0)) * devices / 3600


@dataclass(frozen=True)
class Family:
    """How figures show a branch: the seeds of one arm share a name and a colour."""

    name: str
    colour: int
    seed: int | None
    """Training seed; None without a plan that names the seeds."""
    is_further: bool
    """Whether the seed is not the study's first."""

    def series(self, kind: Literal["line", "dots"], x: list[float], y: list[float]) -> Series:
        return Series(self.name, kind, x, y, colour=self.colour, faint=self.is_further)


def _families(training: Training) -> dict[str, Family]:
    """The family of each branch. An arm that is the trunk trained to its end shares the trunk's family."""
    seeds = training.plan.get("seeds", ())
    own = {segment["branch"] for segment in training.plan.get("segments", ())}
    ends = {arm["name"] for arm in training.plan.get("arms", ()) if arm["interventions"] == "none"} - own
    trunk = f"trunk (= {', '.join(sorted(ends))})" if ends else "trunk"
    families: dict[str, Family] = {}
    colours: dict[str, int] = {}
    for branch in training.branches:
        trained = branch.name.partition("/")[0]
        further = next((seed for seed in seeds if trained.endswith(f"-s{seed}")), None)
        name = trained if further is None else trained.removesuffix(f"-s{further}")
        name = trunk if name.partition(".")[0] == "trunk" or name in ends else name  # "trunk.POINT" in a sweep
        seed = next(iter(seeds), None) if further is None else further
        families[branch.name] = Family(name, colours.setdefault(name, len(colours)), seed, further is not None)
    return families


def _switches(training: Training) -> dict[str, list[int]]:
    """The steps at which the interventions of an arm start, and other steps at which an arm's blend changes, by label."""
    starts, others = set[int](), set[int]()
    for arm in training.plan.get("arms") or ():
        steps = {phase["start_step"] for phase in arm["phases"]} - {0}
        others |= steps
        if steps and 0 < arm["start"] < 1:
            starts.add(min(steps, key=lambda step: abs(step - arm["start"] * arm["phases"][-1]["stop_step"])))
    switches = {"interventions start": sorted(starts), "the blend changes": sorted(others - starts)}
    return {label: steps for label, steps in switches.items() if steps}


def loss_panels(training: Training) -> list[Panel]:
    """The training loss of every run: a panel for pretraining, with changes of the blend, and one for each later stage."""
    families, panels = _families(training), []
    by_stage = grouped(training.branches, lambda branch: branch.later_stage)
    for stage in dict.fromkeys(["", *(stage["name"] for stage in training.plan.get("stages", ())), *by_stage]):
        lines = [families[one.name].series("line", one.tokens, one.loss) for one in by_stage.get(stage, ())]
        if not lines:
            continue
        for label, steps in () if stage else _switches(training).items():
            lines.append(Series(label, "rule", [step * training.step_tokens for step in steps], colour=INK, faint=True))
        title = f"After pretraining: {stage}" if stage else "Pretraining"
        panels.append(Panel(title, "tokens", "loss, nats per token", lines))
    return panels


def validation_panels(training: Training) -> list[Panel]:
    """A panel of validation losses for each source; none if every run has a single loss, which the table of losses shows."""
    families = _families(training)
    pretrained = [branch for branch in training.branches if not branch.later_stage]
    sources = sorted({name for branch in pretrained for name in branch.validation})
    if all(len(points) < 2 for branch in pretrained for points in branch.validation.values()):
        return []
    panels = []
    for source in sources:
        lines: list[Series] = []
        for branch in pretrained:
            if points := branch.validation.get(source):
                x, y = [list(column) for column in zip(*points)]
                lines.append(families[branch.name].series("line" if len(x) > 1 else "dots", x, y))
        panels.append(Panel(source, "tokens", "loss, nats per token", lines))
    return panels


def curriculum_panels(training: Training) -> list[Panel]:
    """For each arm, the share of every source in the tokens over the course of pretraining."""
    arms = training.plan.get("arms") or ()
    sources = list(dict.fromkeys(name for arm in arms for phase in arm["phases"] for name in phase["samples"]))
    panels = []
    for arm in arms:
        x: list[float] = []
        shares: dict[str, list[float]] = {name: [] for name in sources}
        for phase in arm["phases"]:
            total = sum(phase["samples"].values()) or 1
            x += [phase["start_step"] * training.step_tokens, phase["stop_step"] * training.step_tokens]
            for name, share in shares.items():
                share += [phase["samples"].get(name, 0) / total] * 2  # at the phase's start and at its end
        areas = [Series(name, "area", x, shares[name], colour=i) for i, name in enumerate(sources)]
        label = arm_label(ArmInfo(arm["name"], arm["start"], arm["interventions"], end=arm["end"]))
        panels.append(Panel(label, "tokens", "share of the tokens", areas, y_format="percent"))
    return panels


def tree_panels(training: Training) -> list[Panel]:
    """Each branch as a line that begins where it leaves another: faint as planned, bold as far as it is trained."""
    segments = training.plan.get("segments") or ()
    lanes = list(dict.fromkeys(segment["branch"] for segment in segments))
    lane_of = {segment["name"]: lanes.index(segment["branch"]) for segment in segments}
    trained = {branch.name: branch.step for branch in training.branches}
    unit, series = training.step_tokens, []
    for segment in segments:
        lane = lanes.index(segment["branch"])
        start, stop = segment["start_step"], segment["stop_step"]
        series.append(Series("planned", "line", [start * unit, stop * unit], [lane, lane], colour=INK, faint=True))
        parent = lane_of.get(segment["parent"] or "", lane)
        if parent != lane:
            series.append(Series("", "line", [start * unit] * 2, [parent, lane], colour=INK, faint=True))
        done = min(trained.get(segment["branch"], 0), stop)
        if done > start:
            series.append(Series("trained", "line", [start * unit, done * unit], [lane, lane]))
    return [Panel("", "tokens", "", series, lanes=lanes)] if segments else []


@dataclass(frozen=True)
class CostRow:
    """What a stage cost, as far as the run folder records it. Fields of the same name are those of `Branch`, added up."""

    stage: str
    done: int
    planned: int
    """Elements in all; `done` of them are finished."""
    hours: float
    """Hours of the last process of each finished element, added up."""
    device_hours: float | None
    """GPU-hours of the steps on record; on CPUs, hours of processes."""
    planned_gpu_hours: float | None
    restarts: int | None
    lost_steps: int | None
    stall_s: float | None
    wait_s: float | None


def cost_rows(training: Training) -> Iterator[CostRow]:
    for stage, jobs in grouped(training.plan.get("jobs", ()), lambda job: job["stage"]).items():
        seconds, names = training.seconds.get(stage, []), {name for job in jobs for name in job["stage_names"]}
        branches = [branch for branch in training.branches if (branch.later_stage or "pretrain") in names]
        restarts = [known for branch in branches if (known := training.restarts(branch)) is not None]
        yield CostRow(
            stage,
            len(seconds),
            sum(len(job["elements"]) for job in jobs),
            sum(seconds) / 3600,
            sum(branch.device_hours for branch in branches) if branches else None,
            sum(job["gpu_hours"] for job in jobs) or None,
            sum(restarts) if restarts else None,
            sum(branch.lost_steps for branch in branches) if restarts else None,
            sum(branch.stall_s for branch in branches) if branches else None,
            sum(branch.wait_s for branch in branches) if branches else None,
        )


def training_rows(training: Training) -> list[dict[str, Any]]:
    """The last step of each run and its last validation losses."""
    families = _families(training)
    return [
        {
            "run": branch.name,
            "seed": families[branch.name].seed,
            "step": branch.step,
            "tokens": branch.tokens[-1],
            "loss": branch.last_loss,
            "device_hours": branch.device_hours,
            "restarts": training.restarts(branch),
            "lost_steps": branch.lost_steps,
            **{f"validation: {name}": points[-1][1] for name, points in branch.validation.items()},
        }
        for branch in training.branches
    ]
