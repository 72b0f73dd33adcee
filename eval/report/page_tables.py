"""The tables on the page.

Those of single runs show attack success and over-refusal. Those of arms, over their training seeds, show estimates, what a
stage changes, the strongest attack, probes tested on other arms, capability, bits per byte, variance, and published rates
beside ours.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any

from curricula.eval.analysis.capability import BitsEstimate, CapabilityEstimate
from curricula.eval.analysis.metrics import (
    ALL,
    BEST_OF_N,
    AttackMetrics,
    OverrefusalMetrics,
    StudyMetrics,
    is_own_suffix,
    without_average,
)
from curricula.eval.analysis.runs import ArmChange, VarianceParts
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.attacks.worst_case import WORST, AttackStrength, Met
from curricula.eval.probes.representations import Representation
from curricula.eval.report.points import Shown
from curricula.eval.report.wording import DECODERS, arm_label, arm_labels, p_value, points, stage_title
from curricula.eval.tasks import judged_tasks
from curricula.terminal import fixed


@dataclass(frozen=True)
class AttackTable:
    """Attack success of all arms at one stage under one decoder."""

    stage: str
    decoder: str
    benchmarks: list[str]
    """The columns; the last is the main one, the average if there are several benchmarks."""
    rows: list[tuple[str, list[AttackMetrics | None]]]
    """Label of each arm, and its metrics in the order of `benchmarks`; None if not evaluated yet."""

    several: bool
    """Whether prompts have several samples."""
    has_own: bool
    """Whether an arm is attacked with its own suffixes."""
    corrected: bool
    """Whether rates can be corrected for the judge's errors."""
    lossy: bool
    """Whether answers are unparsed or missing."""


def attack_tables(metrics: StudyMetrics, arms: Sequence[ArmInfo]) -> Iterator[AttackTable]:
    labels = arm_labels(arms)
    for stage in metrics.stages:
        for decoder in DECODERS:
            entries = metrics.attacks_by(stage, decoder)
            found = {(entry.arm, entry.seed, entry.benchmark): entry for entry in entries}
            benchmarks = sorted({entry.benchmark for entry in entries} - {ALL})
            columns = benchmarks + ([ALL] if len(benchmarks) > 1 else [])
            if columns:
                rows = [(labels[arm.key], [found.get((arm.name, arm.seed, name)) for name in columns]) for arm in arms]
                main = [entry for entry in entries if entry.benchmark == columns[-1]]
                yield AttackTable(
                    stage,
                    decoder,
                    columns,
                    rows,
                    several=any(entry.samples > 1 for entry in main),
                    has_own=any(is_own_suffix(decoder, entry.benchmark, entry.arm) for entry in entries),
                    corrected=any(entry.corrected is not None for entry in main),
                    lossy=any(entry.unparsed + entry.missing > 0 for entry in main),
                )


def overrefusal_tables(
    metrics: StudyMetrics, arms: Sequence[ArmInfo]
) -> Iterator[tuple[str, str, str, list[tuple[str, OverrefusalMetrics | None]]]]:
    """For each stage, decoder and set of requests, the label and metrics of each arm; None if not evaluated yet."""
    labels = arm_labels(arms)
    for stage in metrics.stages:
        for decoder in dict.fromkeys(task.decoders[0] for task in judged_tasks("overrefusal")):
            entries = [entry for entry in metrics.overrefusals if (entry.stage, entry.decoder) == (stage, decoder)]
            found = {(entry.arm, entry.seed, entry.benchmark): entry for entry in entries}
            for name in dict.fromkeys(entry.benchmark for entry in entries):
                yield stage, decoder, name, [(labels[arm.key], found.get((arm.name, arm.seed, name))) for arm in arms]


@dataclass(frozen=True)
class EstimateCell:
    value: str
    interval: str
    more: str = ""
    """A third line, such as the values of the single runs."""


@dataclass(frozen=True)
class EstimateTable:
    """Estimates of all arms over their training seeds."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[EstimateCell | None]]]
    """Label and cells of each arm; None if not evaluated yet."""
    note: str = ""
    """What the cells leave out, in one sentence."""


def by_arm(
    title: str,
    arms: Sequence[ArmInfo],
    columns: Mapping[Any, str],
    cells: Mapping[tuple[str, Any], EstimateCell],
    note: str = "",
) -> EstimateTable:
    """A table with a row for each arm. `columns` has the heading of each place, `cells` the cell of each arm and place."""
    rows = [(arm_label(arm), [cells.get((arm.name, place)) for place in columns]) for arm in arms]
    return EstimateTable(title, list(columns.values()), rows, note)


def percent_cell(found: OverSeeds, alone: str) -> EstimateCell:
    """A share in percent. `alone` says what the interval of a single run covers, such as "prompts alone"."""
    return _cell(found, lambda share: fixed(share, 1, times=100), alone)


def _cell(found: OverSeeds, form: Callable[[float], str], alone: str) -> EstimateCell:
    interval = [] if found.low is None or found.high is None else [f"{form(found.low)} to {form(found.high)}"]
    told = [*interval, *([alone] if found.spread is None or not interval else [])]
    return EstimateCell(form(found.value), ", ".join(told), f"runs: {', '.join(map(form, found.runs.values()))}")


def estimate_tables(shown: Shown) -> Iterator[EstimateTable]:
    """The tables of attack success, over-refusal and probe AUC, without those that have not been evaluated."""
    order = [(stage, decoder) for stage in shown.metrics.stages for decoder in DECODERS]
    for measure, entries in (("attack success", shown.metrics.attacks), ("over-refusal", shown.metrics.overrefusals)):
        cells = {
            (found.arm, (found.stage, found.decoder)): percent_cell(found.rate, "prompts alone")
            for found in shown.estimates
            if found.measure == measure
        }
        if cells:
            places = sorted({place for _, place in cells}, key=order.index)
            columns = {(stage, decoder): f"{stage}, {DECODERS[decoder]}" for stage, decoder in places}
            note = "An arm has no number if one of its runs lacks verdicts on a benchmark that others have"
            if without_average(entry for entry in entries if entry.decoder in BEST_OF_N):
                note += " (for best of N, a prompt with a verdict on every attempt)"
            note = f"{note}." if without_average(entries) else ""
            yield by_arm(f"{measure.capitalize()}, in %", shown.arms, columns, cells, note)
    if shown.probes:
        columns = {(found.stage, found.layer): f"{found.stage}, {found.layer} layer" for found in shown.probes}
        cells = {
            (found.arm, (found.stage, found.layer)): _cell(found.auc, lambda auc: fixed(auc, 3), "no interval")
            for found in shown.probes
        }
        yield by_arm("Test AUC of linear probes", shown.arms, columns, cells)


def change_tables(changes: Sequence[ArmChange], arms: Sequence[ArmInfo]) -> Iterator[EstimateTable]:
    """For each stage that continues from another, its change in every arm, and how much more that is than the reference's."""
    labels, several = {arm.name: arm_label(arm) for arm in arms}, any(one.test == "seeds" for one in changes)
    for before, stage, measure in dict.fromkeys((one.before, one.stage, one.measure) for one in changes):
        own = [one for one in changes if (one.before, one.stage, one.measure) == (before, stage, measure)]
        columns = {
            (one.decoder, one.reference): DECODERS[one.decoder] + (" \N{MINUS SIGN} reference" if one.reference else "")
            for one in own
        }
        cells = {(one.arm, (one.decoder, one.reference)): _change(one, several) for one in own}
        references = [f"; the reference is “{labels[name]}”" for _, name in columns if name][:1]
        noted = {note: dict.fromkeys(labels[one.arm] for one in own if one.note == note) for note in (one.note for one in own)}
        notes = (f" {', '.join(names)}: {note}." for note, names in noted.items() if note)
        title = "".join([f"{measure.capitalize()}, {before} → {stage}", *references, "."])
        yield by_arm(title, arms, columns, cells, "".join(notes))


def _change(found: ArmChange, several: bool) -> EstimateCell:
    """A change with its interval and p-value. `several`: whether any change is tested over seeds."""
    value, low, high = (points(number, found.measure) for number in (found.value, found.low, found.high))
    alone = ", prompts alone" if several and found.test == "score" else ""
    return EstimateCell(value, f"{low} to {high}{alone}", f"p (Holm) {p_value(found.p_holm)}")


def strength_tables(
    strengths: Sequence[AttackStrength], met: Sequence[Met], arms: Sequence[ArmInfo]
) -> Iterator[EstimateTable]:
    """For each stage and decoder, the share of requests that each attack breaks, and the worst case over attacks.

    If no arm can be compared, the table has no columns and its note says why.
    """
    for stage, decoder in dict.fromkeys((one.stage, one.decoder) for one in met):
        cells = {
            (found.arm, found.attack): replace(percent_cell(found.broken, "prompts alone"), more=f"{found.requests} requests")
            for found in strengths
            if (found.stage, found.decoder) == (stage, decoder)
        }
        note = _left_out([one for one in met if (one.stage, one.decoder) == (stage, decoder)], arms)
        if cells or note:
            attacks = {attack for _, attack in cells}
            headings = {**DECODERS, WORST: "worst case over attacks"}
            columns = {name: heading for name, heading in headings.items() if name in attacks}
            yield by_arm(f"{stage_title(stage).capitalize()}, {DECODERS[decoder]}", arms, columns, cells, note)


def _left_out(met: Sequence[Met], arms: Sequence[ArmInfo]) -> str:
    labels = {arm.name: arm_label(arm) for arm in arms}
    parts = [
        f"“{labels[one.arm]}”"
        + (f" without {', '.join(f'“{DECODERS[name]}”' for name in one.left_out)}" if one.left_out else "")
        + ("" if one.runs else " (nothing left to compare)")
        for one in met
        if one.left_out or not one.runs
    ]
    if not parts:
        return ""
    rule = "A row counts only attacks and requests for which every attacked run of the arm has verdicts"
    return f"{rule}: {'; '.join(parts)}."


def representation_tables(found: Sequence[Representation], arms: Sequence[ArmInfo]) -> Iterator[EstimateTable]:
    """For each stage, every arm's probes of the last probed layer tested on every arm, as means over seeds."""
    for stage in dict.fromkeys(one.stage for one in found):
        pairs = [one for one in found if stage == one.stage and one.seed == one.other_seed]
        if len({one.arm for one in pairs}) < 2:
            continue
        layers = [one.layer for one in pairs]
        layer = "last" if "last" in layers else layers[-1]
        by_pair: dict[tuple[str, str], list[Representation]] = defaultdict(list)
        for one in pairs:
            if one.layer == layer:
                by_pair[one.arm, one.other].append(one)
        title = f"Probes of one arm tested on the states of another, {stage_title(stage)}, {layer} layer: test AUC, and below "
        title += "it the cosine between the two arms’ directions from safe to unsafe text."
        cells = {pair: _transfer(of_pair) for pair, of_pair in by_pair.items()}
        yield by_arm(title, arms, {arm.name: arm_label(arm) for arm in arms}, cells)


def _transfer(pairs: Sequence[Representation]) -> EstimateCell:
    cosine = fmean(one.direction_cosine for one in pairs)
    return EstimateCell(fixed(fmean(one.transfer_auc for one in pairs), 3), f"cosine {fixed(cosine, 3)}")


def capability_tables(
    arms: Sequence[ArmInfo],
    estimates: Sequence[CapabilityEstimate],
    lacking: Mapping[tuple[str, str], Sequence[str]] = MappingProxyType({}),
) -> Iterator[EstimateTable]:
    """A table for each stage, with a column for each task. `lacking`: by stage and arm, the tasks missing for an average."""
    for stage in dict.fromkeys(one.stage for one in estimates):
        found = [one for one in estimates if stage == one.stage]
        parts = [
            f"“{arm_label(arm)}” lacks {', '.join(tasks)}" for arm in arms if (tasks := lacking.get((stage, arm.name), ()))
        ]
        note = f"An average needs all tasks in every run: {'; '.join(parts)}." if parts else ""
        columns = {one.benchmark: "average" if one.benchmark == ALL else one.benchmark for one in found}
        cells = {(one.arm, one.benchmark): percent_cell(one.value, "questions alone") for one in found}
        yield by_arm(f"Capability of {stage_title(stage)}, in % of questions", arms, columns, cells, note)


def bits_table(arms: Sequence[ArmInfo], estimates: Sequence[BitsEstimate]) -> EstimateTable | None:
    cells = {}
    for one in estimates:
        interval = "one run" if one.low is None or one.high is None else f"{fixed(one.low, 3)} to {fixed(one.high, 3)}"
        runs = ", ".join(fixed(value, 3) for value in one.runs.values())
        cells[one.arm, one.source] = EstimateCell(fixed(one.value, 3), interval, f"runs: {runs}")
    columns = {one.source: one.source for one in estimates}
    return by_arm("Bits per byte of held-out text, base models", arms, columns, cells) if columns else None


@dataclass(frozen=True)
class VarianceRow:
    """What makes one kind of rate vary, averaged over the arms. Standard deviations and shares are in 0..1."""

    place: str
    what: str
    """What varies: an arm's rate, or its difference from the arm that starts last."""
    seed: float
    """Standard deviation over training seeds."""
    prompt: float
    """Standard deviation over prompts, which includes how prompts differ from run to run."""
    sample: float | None
    """Standard deviation over samples for one prompt; None with one sample."""
    shares: tuple[float, float, float] | None
    """Shares of seeds, prompts and sampling in the variance of the mean; None if that is zero."""


def variance_rows(parts: Sequence[VarianceParts], arms: Sequence[ArmInfo]) -> Iterator[VarianceRow]:
    """One row for the rates and one for the differences of each stage and decoder; none for single runs."""
    labels = {arm.name: arm_label(arm) for arm in arms}
    groups: dict[tuple[str, str], list[VarianceParts]] = defaultdict(list)
    for part in parts:
        place = f"{part.measure}, {part.stage}, {DECODERS[part.decoder]}"
        what = f"difference from “{labels[part.reference]}”" if part.reference else "an arm’s rate"
        groups[place, what].append(part)
    for (place, what), group in groups.items():
        seed, prompt, sample = (fmean(values) for values in zip(*map(_of_mean, group), strict=True))
        whole = seed + prompt + sample
        yield VarianceRow(
            place,
            what,
            fmean(part.seed**2 for part in group) ** 0.5,
            fmean(part.prompt**2 + part.interaction**2 for part in group) ** 0.5,
            None if any(part.sample is None for part in group) else fmean((part.sample or 0) ** 2 for part in group) ** 0.5,
            (seed / whole, prompt / whole, sample / whole) if whole else None,
        )


def _of_mean(part: VarianceParts) -> tuple[float, float, float]:
    """The parts of the variance of the mean that are due to seeds, prompts and sampling."""
    in_one_run = part.interaction**2 / part.seeds
    sampling = (part.sample or 0.0) ** 2 / (part.samples * part.seeds)
    return part.seed**2 / part.seeds, (part.prompt**2 + in_one_run) / part.prompts, sampling / part.prompts


@dataclass(frozen=True)
class PublishedRow:
    """A published rate of attack success beside that of our most similar arm, in 0..1."""

    model: str
    stage: str
    decoder: str
    published: float
    arm: str
    """Our arm; "" if the study trains no such arm."""
    rate: float | None
    low: float | None
    high: float | None
    source: str


def published_rows(shown: Shown) -> list[PublishedRow]:
    """The published rates of what this study measures too, from `eval/published_rates.json`, which names their sources."""
    known = json.loads((Path(__file__).parents[1] / "published_rates.json").read_text())
    mean = [point for point in shown.points if point.measure == "attack success" and not point.benchmark]
    ours = {(point.stage, point.place, point.arm): point for point in mean}
    measured = {(point.stage, point.place) for point in mean}
    trained = {arm.name for arm in shown.arms}
    found = []
    for one in known["attacks"]:
        if (one["stage"], one["decoder"]) in measured:
            arm = one["arm"] if one["arm"] in trained else ""
            row = ours.get((one["stage"], one["decoder"], arm))
            value, low, high = (row.value, row.low, row.high) if row else (None, None, None)
            source = known["sources"][one["source"]]
            found.append(PublishedRow(one["model"], one["stage"], one["decoder"], one["rate"], arm, value, low, high, source))
    return found
