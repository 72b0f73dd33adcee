"""The page's tables of arms: estimates over training seeds, attacks, probes from arm to arm, variance, published numbers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from curricula.eval.analysis.arms import ArmChange, VarianceParts
from curricula.eval.analysis.metrics import BEST_OF_N, without_average
from curricula.eval.analysis.seeds import OverSeeds
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.attacks.worst_case import WORST, AttackStrength, Met
from curricula.eval.probes.representations import Representation
from curricula.eval.report.points import Shown
from curricula.eval.report.wording import DECODERS, arm_label, p_value, points, stage_title
from curricula.terminal import fixed


@dataclass(frozen=True)
class EstimateCell:
    value: str
    interval: str
    """The 95% interval."""
    more: str = ""
    """Each run's value, in the order of the seeds, or over how many requests it is."""


@dataclass(frozen=True)
class EstimateTable:
    """Estimates of all arms over their training seeds."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[EstimateCell | None]]]
    """Label and cells of each arm; None if not evaluated yet."""
    note: str = ""
    """What the cells leave out, in one sentence."""


def estimate_tables(shown: Shown) -> Iterator[EstimateTable]:
    """Attack success, over-refusal and probe AUC, as far as they have been evaluated."""
    order = [(stage, decoder) for stage in shown.metrics.stages for decoder in DECODERS]
    for measure in ("attack success", "over-refusal"):
        rates = [found for found in shown.estimates if found.measure == measure]
        places = sorted({(found.stage, found.decoder) for found in rates}, key=order.index)
        if rates:
            cells = {(found.arm, found.stage, found.decoder): percent_cell(found.rate, "prompts alone") for found in rates}
            columns = [f"{stage}, {DECODERS[decoder]}" for stage, decoder in places]
            rows = [(arm_label(arm), [cells.get((arm.name, *place)) for place in places]) for arm in shown.arms]
            entries = shown.metrics.attacks if measure == "attack success" else shown.metrics.overrefusals
            note = "An arm has no number where one of its runs lacks verdicts on a benchmark that others have"
            if without_average(entry for entry in entries if entry.decoder in BEST_OF_N):
                note += " (of best of N, a prompt of it with a verdict on every attempt)"
            yield EstimateTable(f"{measure.capitalize()}, in %", columns, rows, f"{note}." if without_average(entries) else "")
    if shown.probes:
        probed = dict.fromkeys((found.stage, found.layer) for found in shown.probes)
        cells = {
            (found.arm, found.stage, found.layer): _cell(found.auc, lambda auc: fixed(auc, 3), "no interval")
            for found in shown.probes
        }
        columns = [f"{stage}, {layer} layer" for stage, layer in probed]
        rows = [(arm_label(arm), [cells.get((arm.name, *place)) for place in probed]) for arm in shown.arms]
        yield EstimateTable("Test AUC of linear probes", columns, rows)


def change_tables(changes: Sequence[ArmChange], arms: Sequence[ArmInfo]) -> Iterator[EstimateTable]:
    """For each stage that continues from another: what it changes in every arm, and in how far more than in the reference."""
    labels, several = {arm.name: arm_label(arm) for arm in arms}, any(one.test == "seeds" for one in changes)
    for before, stage, measure in dict.fromkeys((one.before, one.stage, one.measure) for one in changes):
        own = [one for one in changes if (one.before, one.stage, one.measure) == (before, stage, measure)]
        places = list(dict.fromkeys((one.decoder, one.reference) for one in own))
        cells = {(one.arm, one.decoder, one.reference): _change(one, several) for one in own}
        columns = [DECODERS[name] + (" \N{MINUS SIGN} reference" if other else "") for name, other in places]
        rows = [(arm_label(arm), [cells.get((arm.name, *place)) for place in places]) for arm in arms]
        references = [f"; the reference is “{labels[name]}”" for _, name in places if name][:1]
        noted = {note: dict.fromkeys(labels[one.arm] for one in own if one.note == note) for note in (one.note for one in own)}
        notes = (f" {', '.join(names)}: {note}." for note, names in noted.items() if note)
        title = "".join([f"{measure.capitalize()}, {before} → {stage}", *references, "."])
        yield EstimateTable(title, columns, rows, "".join(notes))


def _change(found: ArmChange, several: bool) -> EstimateCell:
    """`several`: whether other changes are tested over seeds."""
    value, low, high = (points(number, found.measure) for number in (found.value, found.low, found.high))
    alone = ", prompts alone" if several and found.test == "score" else ""
    return EstimateCell(value, f"{low} to {high}{alone}", f"p (Holm) {p_value(found.p_holm)}")


def strength_tables(
    strengths: Sequence[AttackStrength], met: Sequence[Met], arms: Sequence[ArmInfo]
) -> Iterator[EstimateTable]:
    """For each stage and decoder what every attack breaks, and the worst case over attacks.

    Where no arm can be compared, the table has no columns, and its note says why.
    """
    for stage, decoder in dict.fromkeys((one.stage, one.decoder) for one in met):
        cells = {
            (found.arm, found.attack): replace(percent_cell(found.broken, "prompts alone"), more=f"{found.requests} requests")
            for found in strengths
            if (found.stage, found.decoder) == (stage, decoder)
        }
        note = _left_out([one for one in met if (one.stage, one.decoder) == (stage, decoder)], arms)
        if cells or note:
            attacks = [name for name in (*DECODERS, WORST) if any(name == attack for _, attack in cells)]
            columns = ["worst case over attacks" if name == WORST else DECODERS[name] for name in attacks]
            rows = [(arm_label(arm), [cells.get((arm.name, name)) for name in attacks]) for arm in arms]
            yield EstimateTable(f"{stage_title(stage).capitalize()}, {DECODERS[decoder]}", columns, rows, note)


def _left_out(met: Sequence[Met], arms: Sequence[ArmInfo]) -> str:
    """Which attacks the rows of a table leave out."""
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
    """For each stage, on the last layer that was probed: every arm's probes tested on every arm, as the mean over seeds."""
    for stage in dict.fromkeys(one.stage for one in found):
        pairs = [one for one in found if stage == one.stage and one.seed == one.other_seed]
        if len({one.arm for one in pairs}) < 2:
            continue
        layers = [one.layer for one in pairs]
        layer = "last" if "last" in layers else layers[-1]
        rows = []
        for arm in arms:
            own = [[one for one in pairs if (one.layer, one.arm, one.other) == (layer, arm.name, other.name)] for other in arms]
            rows.append((arm_label(arm), [_transfer(of_pair) if of_pair else None for of_pair in own]))
        title = f"Probes of one arm tested on the states of another, {stage_title(stage)}, {layer} layer: test AUC, and under "
        title += "it the cosine between the two arms’ directions from safe to unsafe text."
        yield EstimateTable(title, [arm_label(arm) for arm in arms], rows)


def _transfer(pairs: Sequence[Representation]) -> EstimateCell:
    cosine = fmean(one.direction_cosine for one in pairs)
    return EstimateCell(fixed(fmean(one.transfer_auc for one in pairs), 3), f"cosine {fixed(cosine, 3)}")


def percent_cell(found: OverSeeds, alone: str) -> EstimateCell:
    """A share in percent; `alone`: what is told beside the interval of a single run."""
    return _cell(found, lambda share: fixed(share, 1, times=100), alone)


def _cell(found: OverSeeds, form: Callable[[float], str], alone: str) -> EstimateCell:
    interval = [] if found.low is None or found.high is None else [f"{form(found.low)} to {form(found.high)}"]
    told = [*interval, *([alone] if found.spread is None or not interval else [])]
    return EstimateCell(form(found.value), ", ".join(told), f"runs: {', '.join(map(form, found.runs.values()))}")


@dataclass(frozen=True)
class VarianceRow:
    """What moves a rate of one kind, averaged over the arms. Standard deviations and shares are in 0..1."""

    place: str
    what: str
    """An arm's rate, or its difference from the arm that starts last."""
    seed: float
    """Standard deviation over training seeds."""
    prompt: float
    """Over prompts, those of a prompt in one run included."""
    sample: float | None
    """Over samples of one answer; None with one sample."""
    shares: tuple[float, float, float] | None
    """Of the variance of the mean: the seed's, the prompts', the sampling's; None without any variance."""


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
    """The parts of the variance of the mean that are the seed's, the prompts' and the sampling's."""
    in_one_run = part.interaction**2 / part.seeds
    sampling = (part.sample or 0.0) ** 2 / (part.samples * part.seeds)
    return part.seed**2 / part.seeds, (part.prompt**2 + in_one_run) / part.prompts, sampling / part.prompts


@dataclass(frozen=True)
class PublishedRow:
    """A published rate of attack success beside that of our nearest arm. In 0..1."""

    model: str
    stage: str
    decoder: str
    published: float
    arm: str
    """Our arm; "" where no arm of the study is trained so."""
    rate: float | None
    low: float | None
    high: float | None
    source: str


def published_rows(shown: Shown) -> list[PublishedRow]:
    """All published rates of what this study measures too; `eval/published_rates.json` holds them with their sources."""
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
