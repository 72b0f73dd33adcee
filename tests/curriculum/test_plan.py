import pytest

from curriculum.config import Curriculum
from curriculum.plan import Budget, arms_of, segments_of

PAPER = Budget(600_000_000_000, 2048, 1024)
CURRICULUM = Curriculum(safe={"web": 1}, interventions={"data": {"web": 1, "safe": 1}, "full": {"web": 1, "tag": 1}})


def test_the_papers_study_is_seven_arms():
    names = [arm.name for arm in arms_of(CURRICULUM)]
    assert names == ["data-0", "full-0", "data-20", "full-20", "data-60", "full-60", "safe-100"]


def test_boundaries_snap_to_the_nearest_whole_step():
    assert (PAPER.steps, PAPER.step_at(0.2), PAPER.step_at(0.6)) == (286_102, 57_220, 171_661)
    assert abs(PAPER.snap_tokens(0.2)) <= PAPER.step_tokens / 2


def test_the_trunk_is_trained_once():
    segments = segments_of(arms_of(CURRICULUM), PAPER)
    trained = sum(segment.stop - segment.start for segment in segments) * PAPER.step_tokens
    assert trained == pytest.approx(3.24e12, rel=1e-5)
    assert [s.name for s in segments if s.line == "trunk"] == ["trunk@57220", "trunk@171661", "trunk@286102"]
    assert {s.line: s.parent for s in segments if s.line != "trunk"} == {
        "data-0": None,
        "full-0": None,
        "data-20": "trunk@57220",
        "full-20": "trunk@57220",
        "data-60": "trunk@171661",
        "full-60": "trunk@171661",
    }


def test_an_arms_phases_switch_inside_a_run_at_a_whole_batch():
    arm = arms_of(CURRICULUM)[3]
    phases = arm.phases(CURRICULUM, PAPER)
    assert [phase.until for phase in phases] == [57_220 * 1024, 286_102 * 1024]
    assert [phase.mix for phase in phases] == [CURRICULUM.safe, CURRICULUM.interventions["full"]]


def test_a_start_that_leaves_no_step_is_refused():
    late = Curriculum(safe={"web": 1}, interventions={"data": {"web": 1}}, starts=(0.0, 0.99))
    with pytest.raises(ValueError, match=r"start 0.99 snaps to step 10 of 10"):
        segments_of(arms_of(late), Budget(10 * 64, 16, 4))
