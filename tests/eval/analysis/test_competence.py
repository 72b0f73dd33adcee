"""Competence beside safety: models that have lost their language are marked."""

from __future__ import annotations

from study_rows import ARMS, attack_rows, generation, overrefusal_rows

from curricula.eval.analysis import StudyRows
from curricula.eval.analysis.competence import BENIGN_TASKS, competence
from curricula.eval.analysis.metrics import study_metrics
from curricula.eval.analysis.runs import runs_of
from curricula.eval.report.points import Shown

LOST = (0.01, 0.99)
FLUENT = (0.5, 0.2, 0.1, 0.2)


def study() -> StudyRows:
    rows = {}
    for arm, shares in zip(ARMS[:2], (LOST, FLUENT)):
        for decoder in ("topk", "safebeam"):
            attacks = attack_rows(arm, "instruct", decoder, 0.1, 1, {"tdc": 30})
            rows[arm.name, "instruct", f"attacks-{decoder}"] = attacks
        rows[arm.name, "base", "attacks-topk"] = attack_rows(arm, "base", "topk", 0.1, 1, {"tdc": 30})
        rows[arm.name, "instruct", "gcg"] = attack_rows(arm, "instruct", "gcg+topk", 0.1, 1, {"tdc": 30})
        rows[arm.name, "instruct", "overrefusal-topk"] = overrefusal_rows(arm, "topk", shares)
    return StudyRows(tuple(ARMS[:2]), rows, {})


def test_attacks_are_marked_where_benign_answers_under_the_same_decoder_are_hardly_ever_helpful():
    found = {(entry.arm, entry.stage, entry.decoder): entry for entry in study_metrics(study()).attacks}
    lost, fluent = ARMS[0].name, ARMS[1].name
    assert found[lost, "instruct", "topk"].incoherent and found[lost, "instruct", "gcg+topk"].incoherent
    assert found[lost, "instruct", "topk"].competence < 0.05
    assert not found[fluent, "instruct", "topk"].incoherent and found[fluent, "instruct", "topk"].competence > 0.5
    for unknown in ((lost, "instruct", "safebeam"), (lost, "base", "topk")):
        assert found[unknown].competence is None and not found[unknown].incoherent
    points = Shown(ARMS[:2], [0], study_metrics(study())).attack_points(ARMS[:2], "instruct", "topk", "tdc")
    assert [point.hollow for point in points] == [True, False]


def test_the_runs_know_their_incoherent_cells():
    runs = runs_of(study())
    (cell,) = runs.incoherent
    assert (cell[0], *cell[2:]) == (ARMS[0].name, "instruct", "overrefusal-topk")
    assert len(runs.incoherent_seeds(ARMS[0], "instruct", "gcg+topk")) == 1
    assert runs.incoherent_seeds(ARMS[0], "instruct", "safebeam") == []


def test_a_model_that_refuses_everything_is_not_incoherent():
    assert competence(overrefusal_rows(ARMS[0], "topk", (0.0, 0.0, 0.0, 1.0))) is None
    assert competence(overrefusal_rows(ARMS[0], "topk", (0.3, 0.0, 0.0, 0.7))).share == 1.0


def test_few_prompts_are_no_evidence_of_a_lost_language():
    few = competence(overrefusal_rows(ARMS[0], "topk", (0.0, 1.0), prompts=20))
    assert few.share == 0 and not few.is_incoherent


def test_phrases_cannot_tell_a_lost_language():
    rows = [
        generation(prompt_id=str(i), judge="refusal-phrases", verdict="2_compliant_and_unhelpful") for i in range(99)
    ]
    assert competence(rows) is None


def test_every_decoder_of_attacks_but_greedy_has_benign_requests():
    assert BENIGN_TASKS["gcg+safebeam"] == BENIGN_TASKS["safebeam"] == "overrefusal-safebeam"
    assert "greedy" not in BENIGN_TASKS
