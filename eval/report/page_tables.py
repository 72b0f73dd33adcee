"""The tables on the page.

Those of single runs show attack success and over-refusal. Those of arms, over their training seeds, show estimates, what a
stage changes, the strongest attack, probes tested on other arms, capability, bits per byte, variance, and published rates
beside ours.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
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
from curricula.eval.analysis.representations import Representation
from curricula.eval.analysis.runs import ArmChange, VarianceParts
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.statistics import grouped
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.analysis.worst_case import WORST, AttackStrength, Met
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
    for stage, decoder in itertools.product(metrics.stages, DECODERS):
        entries = metrics.attacks_by(stage, decoder)
        if not entries:
            continue
        by_place = {(entry.arm, entry.seed, entry.benchmark): entry for entry in entries}
        benchmarks = sorted({entry.benchmark for entry in entries} - {ALL})
        columns = benchmarks + ([ALL] if len(benchmarks) > 1 else [])
        main = [entry for entry in entries if entry.benchmark == columns[-1]]
        yield AttackTable(
            stage,
            decoder,
            columns,
            [(labels[arm.key], [by_place.get((arm.name, arm.seed, name)) for name in columns]) for arm in arms],
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
            by_place = {(entry.arm, entry.seed, entry.benchmark): entry for entry in entries}
            for name in dict.fromkeys(entry.benchmark for entry in entries):
                yield stage, decoder, name, [(labels[arm.key], by_place.get((arm.name, arm.seed, name))) for arm in arms]


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


def percent_cell(share: OverSeeds, alone: str) -> EstimateCell:
    """A share in percent. `alone` says what the interval of a single run covers, such as "prompts alone"."""
    return _cell(share, lambda value: fixed(value, 1, times=100), alone)


def _cell(estimate: OverSeeds, form: Callable[[float], str], alone: str) -> EstimateCell:
    interval = []
    if estimate.low is not None and estimate.high is not None:
        interval.append(f"{form(estimate.low)} to {form(estimate.high)}")
    if estimate.spread is None or not interval:
        interval.append(alone)
    return EstimateCell(form(estimate.value), ", ".join(interval), f"runs: {', '.join(map(form, estimate.runs.values()))}")


def estimate_tables(shown: Shown) -> Iterator[EstimateTable]:
    """The tables of attack success, over-refusal and probe AUC, without those that have not been evaluated."""
    order = [(stage, decoder) for stage in shown.metrics.stages for decoder in DECODERS]
    for measure, entries in (("attack success", shown.metrics.attacks), ("over-refusal", shown.metrics.overrefusals)):
        cells = {
            (estimate.arm, (estimate.stage, estimate.decoder)): percent_cell(estimate.rate, "prompts alone")
            for estimate in shown.estimates
            if estimate.measure == measure
        }
        if cells:
            places = sorted({place for _, place in cells}, key=order.index)
            columns = {(stage, decoder): f"{stage}, {DECODERS[decoder]}" for stage, decoder in places}
            yield by_arm(f"{measure.capitalize()}, in %", shown.arms, columns, cells, _missing_note(entries))
    if shown.probes:
        columns = {(probe.stage, probe.layer): f"{probe.stage}, {probe.layer} layer" for probe in shown.probes}
        cells = {
            (probe.arm, (probe.stage, probe.layer)): _cell(probe.auc, lambda auc: fixed(auc, 3), "no interval")
            for probe in shown.probes
        }
        yield by_arm("Test AUC of linear probes", shown.arms, columns, cells)


def _missing_note(entries: Sequence[AttackMetrics | OverrefusalMetrics]) -> str:
    """Why some arms have no estimate; "" if all have one."""
    if not without_average(entries):
        return ""
    note = "An arm has no number if one of its runs lacks verdicts on a benchmark that others have"
    if without_average(entry for entry in entries if entry.decoder in BEST_OF_N):
        note += " (for best of N, a prompt with a verdict on every attempt)"
    return f"{note}."


def change_tables(changes: Sequence[ArmChange], arms: Sequence[ArmInfo]) -> Iterator[EstimateTable]:
    """For each stage that continues from another, its change in every arm, and how much more that is than the reference's."""
    labels, several = {arm.name: arm_label(arm) for arm in arms}, any(change.test == "seeds" for change in changes)
    by_place = grouped(changes, lambda change: (change.before, change.stage, change.measure))
    for (before, stage, measure), own in by_place.items():
        columns = {
            (change.decoder, change.reference): DECODERS[change.decoder]
            + (" \N{MINUS SIGN} reference" if change.reference else "")
            for change in own
        }
        cells = {(change.arm, (change.decoder, change.reference)): _change_cell(change, several) for change in own}
        title = f"{measure.capitalize()}, {before} → {stage}"
        reference = next((name for _, name in columns if name), None)
        if reference is not None:
            title += f"; the reference is “{labels[reference]}”"
        notes = ""
        for note, about in grouped((change for change in own if change.note), lambda change: change.note).items():
            names = dict.fromkeys(labels[change.arm] for change in about)
            notes += f" {', '.join(names)}: {note}."
        yield by_arm(f"{title}.", arms, columns, cells, notes)


def _change_cell(change: ArmChange, several: bool) -> EstimateCell:
    """A change with its interval and p-value. `several`: whether any change is tested over seeds."""
    value, low, high = (points(number, change.measure) for number in (change.value, change.low, change.high))
    alone = ", prompts alone" if several and change.test == "score" else ""
    return EstimateCell(value, f"{low} to {high}{alone}", f"p (Holm) {p_value(change.p_holm)}")


def strength_tables(
    strengths: Sequence[AttackStrength], met: Sequence[Met], arms: Sequence[ArmInfo]
) -> Iterator[EstimateTable]:
    """For each stage and decoder, the share of requests that each attack breaks, and the worst case over attacks.

    If no arm can be compared, the table has no columns and its note says why.
    """
    for (stage, decoder), own in grouped(met, lambda arm_met: (arm_met.stage, arm_met.decoder)).items():
        cells = {
            (strength.arm, strength.attack): replace(
                percent_cell(strength.broken, "prompts alone"), more=f"{strength.requests} requests"
            )
            for strength in strengths
            if (strength.stage, strength.decoder) == (stage, decoder)
        }
        note = _left_out(own, arms)
        if cells or note:
            attacks = {attack for _, attack in cells}
            headings = {**DECODERS, WORST: "worst case over attacks"}
            columns = {name: heading for name, heading in headings.items() if name in attacks}
            yield by_arm(f"{stage_title(stage).capitalize()}, {DECODERS[decoder]}", arms, columns, cells, note)


def _left_out(met: Sequence[Met], arms: Sequence[ArmInfo]) -> str:
    """A sentence on the attacks that arms are compared without; "" if there are none."""
    labels = {arm.name: arm_label(arm) for arm in arms}
    parts = []
    for arm_met in met:
        if arm_met.left_out or not arm_met.runs:
            attacks = ", ".join(f"“{DECODERS[name]}”" for name in arm_met.left_out)
            without = f" without {attacks}" if attacks else ""
            parts.append(f"“{labels[arm_met.arm]}”{without}{'' if arm_met.runs else ' (nothing left to compare)'}")
    if not parts:
        return ""
    rule = "A row counts only attacks and requests for which every attacked run of the arm has verdicts"
    return f"{rule}: {'; '.join(parts)}."


def representation_tables(comparisons: Sequence[Representation], arms: Sequence[ArmInfo]) -> Iterator[EstimateTable]:
    """For each stage, every arm's probes of the last probed layer tested on every arm, as means over seeds."""
    of_one_seed = (pair for pair in comparisons if pair.seed == pair.other_seed)
    for stage, pairs in grouped(of_one_seed, lambda pair: pair.stage).items():
        if len({pair.arm for pair in pairs}) < 2:
            continue
        layers = [pair.layer for pair in pairs]
        layer = "last" if "last" in layers else layers[-1]
        by_arms = grouped((pair for pair in pairs if pair.layer == layer), lambda pair: (pair.arm, pair.other))
        title = f"Probes of one arm tested on the states of another, {stage_title(stage)}, {layer} layer: test AUC, and below "
        title += "it the cosine between the two arms’ directions from safe to unsafe text."
        cells = {of_arms: _transfer_cell(over_seeds) for of_arms, over_seeds in by_arms.items()}
        yield by_arm(title, arms, {arm.name: arm_label(arm) for arm in arms}, cells)


def _transfer_cell(pairs: Sequence[Representation]) -> EstimateCell:
    auc, cosine = fmean(pair.transfer_auc for pair in pairs), fmean(pair.direction_cosine for pair in pairs)
    return EstimateCell(fixed(auc, 3), f"cosine {fixed(cosine, 3)}")


def capability_tables(
    arms: Sequence[ArmInfo], estimates: Sequence[CapabilityEstimate], lacking: Mapping[tuple[str, str], Sequence[str]]
) -> Iterator[EstimateTable]:
    """A table for each stage, with a column for each task. `lacking`: by stage and arm, the tasks missing for an average."""
    for stage, own in grouped(estimates, lambda estimate: estimate.stage).items():
        parts = [
            f"“{arm_label(arm)}” lacks {', '.join(tasks)}" for arm in arms if (tasks := lacking.get((stage, arm.name), ()))
        ]
        note = f"An average needs all tasks in every run: {'; '.join(parts)}." if parts else ""
        columns = {name: "average" if name == ALL else name for name in (estimate.benchmark for estimate in own)}
        cells = {(estimate.arm, estimate.benchmark): percent_cell(estimate.value, "questions alone") for estimate in own}
        yield by_arm(f"Capability of {stage_title(stage)}, in % of questions", arms, columns, cells, note)


def bits_table(arms: Sequence[ArmInfo], estimates: Sequence[BitsEstimate]) -> EstimateTable | None:
    cells = {}
    for bits in estimates:
        interval = "one run" if bits.low is None or bits.high is None else f"{fixed(bits.low, 3)} to {fixed(bits.high, 3)}"
        runs = ", ".join(fixed(value, 3) for value in bits.runs.values())
        cells[bits.arm, bits.source] = EstimateCell(fixed(bits.value, 3), interval, f"runs: {runs}")
    columns = {bits.source: bits.source for bits in estimates}
    return by_arm("Bits per byte of held-out text, base models", arms, columns, cells) if columns else None


@dataclass(frozen=True)
class VarianceRow:
    """What makes one kind of rate vary: `VarianceParts`, averaged over the arms. Standard deviations and shares are in 0..1."""

    place: str
    what: str
    """What varies: an arm's rate, or its difference from the arm that starts last."""
    seed: float
    prompt: float
    """Standard deviation over prompts, which includes how prompts differ from run to run."""
    sample: float | None
    shares: tuple[float, float, float] | None
    """Shares of seeds, prompts and sampling in the variance of the mean; None if that is zero."""


def variance_rows(parts: Sequence[VarianceParts], arms: Sequence[ArmInfo]) -> Iterator[VarianceRow]:
    """One row for the rates and one for the differences of each stage and decoder; none for single runs."""
    labels = {arm.name: arm_label(arm) for arm in arms}
    by_place = grouped(parts, lambda part: (part.measure, part.stage, part.decoder, part.reference))
    for (measure, stage, decoder, reference), group in by_place.items():
        seed, prompt, sample = (fmean(values) for values in zip(*map(_of_mean, group), strict=True))
        total = seed + prompt + sample
        yield VarianceRow(
            f"{measure}, {stage}, {DECODERS[decoder]}",
            f"difference from “{labels[reference]}”" if reference else "an arm’s rate",
            fmean(part.seed**2 for part in group) ** 0.5,
            fmean(part.prompt**2 + part.interaction**2 for part in group) ** 0.5,
            None if any(part.sample is None for part in group) else fmean((part.sample or 0) ** 2 for part in group) ** 0.5,
            (seed / total, prompt / total, sample / total) if total else None,
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
    means = [point for point in shown.points if point.measure == "attack success" and not point.benchmark]
    ours = {(point.stage, point.place, point.arm): point for point in means}
    measured = {(point.stage, point.place) for point in means}
    trained = {arm.name for arm in shown.arms if not arm.is_custom}
    rows = []
    for attack in known["attacks"]:
        stage, decoder = attack["stage"], attack["decoder"]
        if (stage, decoder) in measured:
            arm = attack["arm"] if attack["arm"] in trained else ""
            point = ours.get((stage, decoder, arm))
            value, low, high = (point.value, point.low, point.high) if point else (None, None, None)
            source = known["sources"][attack["source"]]
            rows.append(PublishedRow(attack["model"], stage, decoder, attack["rate"], arm, value, low, high, source))
    return rows
