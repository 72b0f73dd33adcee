"""How alike the models of a study represent unsafe text: probes of one that test another, and the angles between directions.

docs/evaluation.md says what such numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curricula.eval.analysis.study_rows import ArmInfo, StudyRows
from curricula.eval.probes.auc import placements
from curricula.eval.probes.store import FOLDER, Fitted, read_fitted
from curricula.eval.rows import row_key


@dataclass(frozen=True)
class Representation:
    """How two models compare on one layer."""

    stage: str
    layer: str
    arm: str
    """Arm of the first model, whose probes are tested on the other's states."""
    seed: int
    other: str
    other_seed: int
    transfer_auc: float
    """Mean test AUC of the first model's probes on the other's states; if both are the same model, the model's own AUC."""
    direction_cosine: float
    """Cosine between the models' differences of mean states, unsafe minus safe texts."""
    probe_cosine: float
    """Cosine between the mean weights of the models' probes."""


def representations(run: Path, study: StudyRows) -> Iterator[Representation]:
    """All comparisons of models that were probed on the same texts and layers."""
    for stage in study.stages:
        folders = {arm.key: run / "eval" / arm.holder(stage) / stage / FOLDER for arm in study.arms}
        fitted = {}
        for arm in study.arms:
            probes = read_fitted(folders[arm.key])
            # Probes of an earlier model or of earlier settings do not count.
            if probes and probes.key == row_key(probes=[row.key for row in study.probes.get((arm.key, stage), ())]):
                fitted[arm.key] = probes
        probed = [arm for arm in study.arms if arm.key in fitted]
        for other in probed:
            tested = fitted[other.key]
            for place in range(len(tested.layers)):
                states = tested.test_states(folders[other.key], place).astype(np.float64)
                for arm in probed:
                    if (arm.seed == other.seed or arm.name == other.name) and _match(fitted[arm.key], tested):
                        yield _compare(stage, place, arm, other, fitted[arm.key], tested, states)


def _match(one: Fitted, other: Fitted) -> bool:
    """Whether two models were tested on the same texts and layers, and have states of one size."""
    same_texts = one.test_ids == other.test_ids and bool(np.array_equal(one.test_unsafe, other.test_unsafe))
    return same_texts and one.layers == other.layers and one.directions.shape == other.directions.shape


def _compare(
    stage: str, place: int, arm: ArmInfo, other: ArmInfo, one: Fitted, tested: Fitted, states: np.ndarray
) -> Representation:
    scores = states @ one.weights[:, place].T + one.bias[:, place]
    return Representation(
        stage=stage,
        layer=one.layers[place],
        arm=arm.name,
        seed=arm.seed,
        other=other.name,
        other_seed=other.seed,
        transfer_auc=float(np.mean([placements(of, tested.test_unsafe)[0].mean() for of in scores.T])),
        direction_cosine=cosine(one.directions[place], tested.directions[place]),
        probe_cosine=cosine(one.weights[:, place].mean(0), tested.weights[:, place].mean(0)),
    )


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms else 0.0
