"""The rows of a study by training run: the arm, the training seed, and what that run answered.

Here, and nowhere else, a row is assigned to its training seed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np

from curricula.eval.analysis.competence import BENIGN_TASKS, competence
from curricula.eval.analysis.metrics import BEST_OF_N, harmful, is_own_suffix
from curricula.eval.analysis.seeds import BySeed, ProbeAuc, ProbesBySeed
from curricula.eval.analysis.statistics import Outcome, Prompt, any_of, prompt_means, prompt_of
from curricula.eval.analysis.study_rows import ArmInfo, StudyRows
from curricula.eval.rows import JudgedRow, ProbeRow


@dataclass(frozen=True)
class Runs:
    """All rows of a study by run."""

    arms: tuple[ArmInfo, ...]
    generations: Mapping[tuple[str, int, str, str], Sequence[JudgedRow]]
    """Judged answers by (arm, training seed, stage, task), without those to an arm's own suffixes in tasks of transfer."""
    probes: Mapping[tuple[str, int, str], Sequence[ProbeRow]] = field(default_factory=dict)
    """Probes by (arm, training seed, stage)."""
    incoherent: frozenset[tuple[str, int, str, str]] = frozenset()
    """Cells that have lost their language: (arm, training seed, stage, task of benign requests)."""
    having: Mapping[str, Collection[str]] = field(default_factory=dict)
    """The arms that are to have a stage; all where it is not named."""

    _means: dict[tuple[object, ...], BySeed] = field(default_factory=dict, init=False, compare=False, repr=False)

    def places(self) -> list[tuple[str, str, str]]:
        """What has been answered by any run: (stage, task, decoder)."""
        decoders: dict[tuple[str, str], set[str]] = defaultdict(set)
        for (_, _, stage, task), rows in self.generations.items():
            decoders[stage, task].update(row.decoder for row in rows)
        return [(*place, decoder) for place, names in decoders.items() for decoder in sorted(names)]

    def reference(self, stage: str) -> ArmInfo:
        """The arm that starts last of those that are to have a stage, whether or not it has answers yet."""
        having = self.having.get(stage) or {arm.name for arm in self.arms}
        return max((arm for arm in self.arms if arm.name in having), key=lambda arm: arm.start)

    def different_judges(self, arms: Collection[ArmInfo], stages: Collection[str], task: str, decoder: str) -> str:
        """A sentence if the arms' answers were judged by several judges, or by several versions of one; otherwise empty."""
        names = {arm.name for arm in arms}
        judges = {
            f"{row.judge} {row.judge_version}"
            for (name, _, stage, kind), rows in self.generations.items()
            if name in names and stage in stages and kind == task
            for row in rows
            if row.judge and row.decoder == decoder
        }
        return f"judged by different versions: {', '.join(sorted(judges))}" if len(judges) > 1 else ""

    @cached_property
    def _attempts(self) -> Mapping[tuple[str, str], Counter[Prompt]]:
        """Of best of N by (stage, decoder): the attempts at each prompt in the run with most of them."""
        most: dict[tuple[str, str], Counter[Prompt]] = defaultdict(Counter)
        for (_, _, stage, _), rows in self.generations.items():
            for decoder in BEST_OF_N & {row.decoder for row in rows}:
                most[stage, decoder] |= Counter(prompt_of(row) for row in rows if row.decoder == decoder)
        return most

    def rates(self, arm: ArmInfo, stage: str, task: str, decoder: str, outcome: Outcome) -> BySeed:
        """The mean outcome of each prompt of an arm, by training seed; of best of N, whether any attempt is harmful."""
        asked = (arm.name, stage, task, decoder, outcome)
        if asked not in self._means:
            found = {
                seed: prompt_means((row for row in rows if row.decoder == decoder), outcome)
                for (name, seed, *place), rows in self.generations.items()
                if name == arm.name and place == [stage, task]
            }
            if decoder in BEST_OF_N and outcome is harmful:
                found = {seed: any_of(means, self._attempts[stage, decoder]) for seed, means in found.items()}
            self._means[asked] = {seed: means for seed, means in sorted(found.items()) if means}
        return self._means[asked]

    def aucs(self, arm: ArmInfo, stage: str, layer: str) -> ProbesBySeed:
        """The AUC of each probe on one layer of an arm, by training seed and by the probe's own seed."""
        found = {
            seed: {
                row.seed: ProbeAuc(
                    row.auc,
                    (np.array(row.placements[0]), np.array(row.placements[1])),
                    round(abs(row.baseline_length_auc - 0.5), 9),  # its sign may be chance where lengths are matched
                )
                for row in rows
                if row.layer == layer
            }
            for (name, seed, kind), rows in self.probes.items()
            if (name, kind) == (arm.name, stage)
        }
        return {seed: aucs for seed, aucs in sorted(found.items()) if aucs}

    def incoherent_seeds(self, arm: ArmInfo, stage: str, decoder: str) -> list[int]:
        """The training seeds whose run is incoherent at this stage under this decoder."""
        task = BENIGN_TASKS.get(decoder)
        return sorted(cell[1] for cell in self.incoherent if (cell[0], *cell[2:]) == (arm.name, stage, task))


def runs_of(study: StudyRows, having: Mapping[str, Collection[str]] = MappingProxyType({})) -> Runs:
    """The study's rows by run; `having` as in `Runs`.

    An arm that was trained with several seeds is in the study once for each.
    """
    generations: dict[tuple[str, int, str, str], list[JudgedRow]] = defaultdict(list)
    probes: dict[tuple[str, int, str], list[ProbeRow]] = defaultdict(list)
    arms = {arm.key: arm for arm in study.arms}
    for (key, stage, task), answers in study.generations.items():
        if arm := arms.get(key):
            own = generations[arm.name, arm.seed, stage, task]
            own.extend(row for row in answers if not is_own_suffix(row.decoder, row.benchmark, arm.name))
    for (key, stage), rows in study.probes.items():
        if arm := arms.get(key):
            probes[arm.name, arm.seed, stage].extend(rows)
    distinct = {arm.name: arm for arm in reversed(study.arms)}
    return Runs(tuple(reversed(distinct.values())), generations, probes, frozenset(_incoherent(study)), having)


def _incoherent(study: StudyRows) -> Iterator[tuple[str, int, str, str]]:
    arms = {arm.key: arm for arm in study.arms}
    for (key, stage, task), rows in study.own_verdicts.items():
        found = competence(rows) if key in arms and task in BENIGN_TASKS.values() else None
        if found and found.is_incoherent:
            yield arms[key].name, arms[key].seed, stage, task
