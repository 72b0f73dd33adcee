"""From a study's curriculum to phases: starts, ramps, doses, matched exposure."""

import itertools

import pytest
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from curricula.curriculum.config import Curriculum, PhaseConfig
from curricula.curriculum.plan import Budget, arms_of, intervention_share
from curricula.curriculum.stream.blend import Blend
from curricula.curriculum.tree import lines_of, training_tree

PAPER = Budget(600_000_000_000, 2048, 1024)
SMALL = Budget(1000 * 64, 16, 4)  # a thousand steps
SAFE, DATA = {"web": 3, "math": 1}, {"web": 2, "math": 1, "refusals": 1}
CURRICULUM = Curriculum(safe=SAFE, interventions={"data": DATA, "full": {**DATA, "tagged": 1}})


def arm_of(name, curriculum, budget=SMALL):
    return next(arm for arm in arms_of(curriculum, budget) if arm.name == name)


def seen(arm, curriculum, budget):
    """Intervention samples that an arm sees by its end."""
    blend = Blend(arm.blend_phases(budget))
    return sum(count for name, count in blend.counts(blend.total).items() if not curriculum.safe.get(name))


def test_the_papers_study_is_seven_arms():
    names = [arm.name for arm in arms_of(CURRICULUM, PAPER)]
    assert names == ["data-0", "full-0", "data-20", "full-20", "data-60", "full-60", "safe-100"]


def test_boundaries_snap_to_the_nearest_whole_step():
    assert (PAPER.steps, PAPER.step_at(0.2), PAPER.step_at(0.6)) == (286_102, 57_220, 171_661)
    assert abs(PAPER.snap_tokens(0.2)) <= PAPER.step_tokens / 2


def test_the_trunk_is_trained_once():
    segments = training_tree(lines_of(arms_of(CURRICULUM, PAPER), CURRICULUM, PAPER, PAPER.steps)).segments
    trained = sum(segment.stop - segment.start for segment in segments) * PAPER.step_tokens
    assert trained == pytest.approx(3.24e12, rel=1e-5)
    assert [s.name for s in segments if s.branch == "trunk"] == ["trunk@57220", "trunk@171661", "trunk@286102"]
    assert {s.branch: s.parent for s in segments if s.branch != "trunk"} == {
        "data-0": None,
        "full-0": None,
        "data-20": "trunk@57220",
        "full-20": "trunk@57220",
        "data-60": "trunk@171661",
        "full-60": "trunk@171661",
    }


def test_an_arms_phases_switch_at_a_whole_batch():
    phases = arm_of("full-20", CURRICULUM, PAPER).blend_phases(PAPER)
    assert [phase.until for phase in phases] == [57_220 * 1024, 286_102 * 1024]
    assert [phase.mix for phase in phases] == [CURRICULUM.safe, CURRICULUM.interventions["full"]]


def test_a_start_that_leaves_no_step_is_refused():
    late = Curriculum(safe=SAFE, interventions={"data": DATA}, starts=(0.0, 0.99))
    tiny = Budget(10 * 64, 16, 4)
    with pytest.raises(ValueError, match="arm data-99: its phase until 1 rounds to no step of 10; make it longer"):
        training_tree(lines_of(arms_of(late, tiny), late, tiny, tiny.steps))


def with_arm(*phases, **changes):
    written = tuple(PhaseConfig(**phase) for phase in phases)
    return Curriculum(safe=SAFE, interventions={"data": DATA}, arms={"mine": written}, **changes)


def test_a_dose_that_ends_returns_to_safe_data_and_shares_the_trunk():
    curriculum = with_arm({"until": 0.3, "mix": "safe"}, {"until": 0.5, "mix": "data"}, {"until": 1, "mix": "safe"})
    arm = arm_of("mine", curriculum)
    assert [(p.until, p.mix) for p in arm.blend_phases(SMALL)] == [(1200, SAFE), (2000, DATA), (4000, SAFE)]
    assert (arm.start, arm.end, arm.cooldown) == (0.3, 0.5, None)
    assert [one.name for one in arms_of(curriculum, SMALL)] == ["data-0", "data-20", "mine", "data-60", "safe-100"]
    segment = next(
        s
        for s in training_tree(lines_of(arms_of(curriculum, SMALL), curriculum, SMALL, SMALL.steps)).segments
        if s.branch == "mine"
    )
    assert (segment.parent, segment.start, segment.stop) == ("trunk@300", 300, 1000)


def test_a_ramp_rises_and_falls_in_equal_steps_and_sees_as_much_as_a_straight_line():
    curriculum = with_arm(
        {"until": 0.2, "mix": "safe"},
        {"until": 0.6, "mix": "data", "ramp": 8},
        {"until": 0.8, "mix": "data"},
        {"until": 1, "mix": "safe", "ramp": 2},
    )
    arm = arm_of("mine", curriculum)
    phases = arm.blend_phases(SMALL)
    shares = [intervention_share(phase.mix, curriculum) for phase in phases]
    assert len(phases) == 12 and shares[0] == 0
    steps = [later - earlier for earlier, later in itertools.pairwise(shares[1:9])]
    assert steps == pytest.approx([0.25 / 8] * 7)
    assert shares[9:] == pytest.approx([0.25, 0.75 * 0.25, 0.25 * 0.25])
    assert seen(arm, curriculum, SMALL) == pytest.approx(4000 * 0.25 * (0.4 / 2 + 0.2 + 0.2 / 2), abs=4)


@pytest.mark.parametrize(("start", "steps"), [(0.05, 3), (0.02, 7), (0.2, 3)])  # whose last step ends at 1 but for rounding
def test_a_ramp_to_the_end_has_no_end(start, steps):
    ramp = with_arm({"until": start, "mix": "safe"}, {"until": 1, "mix": "data", "ramp": steps})
    assert arm_of("mine", ramp).end == 1.0


def test_a_written_mix_in_the_ratio_of_the_safe_one_is_the_trunk():
    curriculum = with_arm({"until": 0.5, "mix": {"web": 6.0, "math": 2.0, "tagged": 0.0}}, {"until": 1, "mix": {"refusals": 1}})
    assert [(p.until, p.mix) for p in arm_of("mine", curriculum).blend_phases(SMALL)] == [(2000, SAFE), (4000, {"refusals": 1})]
    assert arm_of("mine", with_arm({"until": 1, "mix": {"web": 6.0001, "math": 2.0}})).start == 0


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([], "must rise from phase to phase and end at 1"),
        ([{"until": 0.5, "mix": "data"}], "must rise from phase to phase and end at 1, but is \\[0.5\\]"),
        ([{"until": 0.5, "mix": "data"}, {"until": 0.5, "mix": "safe"}, {"until": 1, "mix": "data"}], "must rise"),
        ([{"until": 0.5, "mix": "data"}, {"until": 0.3, "mix": "safe"}, {"until": 1, "mix": "data"}], "must rise"),
        ([{"until": 1, "mix": "dta"}], "arm mine: mix 'dta' is not known; choose one of safe, data, or write weights"),
        ([{"until": 1, "mix": {"web": -1}}], "arm mine, phase 0: the weights of its mix must be non-negative"),
        ([{"until": 1, "mix": "safe"}], "arm mine reads only safe data; add 1 to starts instead"),
    ],
)
def test_an_arm_that_means_nothing_is_refused(phases, said):
    with pytest.raises(ValueError, match=said):
        arms_of(with_arm(*phases), SMALL)


def test_safe_data_alone_is_a_curriculum():
    assert [arm.name for arm in arms_of(Curriculum(safe=SAFE, starts=(1.0,)), SMALL)] == ["safe-100"]


starts = st.lists(st.integers(0, 95).map(lambda n: n / 100), min_size=1, max_size=4, unique=True).map(sorted)


@examples(500)
@given(starts, st.floats(1e-4, 0.9), st.floats(0.01, 10), st.integers(100, 5000))
def test_matched_exposure_gives_every_arm_of_a_set_the_same_interventions(starts, share, ratio, steps):
    budget = Budget(steps * 64, 16, 4)
    mix = {
        "web": 1 - share,
        "math": (1 - share) * 3,
        "refusals": 4 * share * ratio / (1 + ratio),
        "morals": 4 * share / (1 + ratio),
    }
    curriculum = Curriculum(safe=SAFE, interventions={"data": mix}, starts=(*starts, 1.0), exposure="matched")
    whole = [budget.steps - budget.step_at(start) for start in starts]
    assume(whole[-1] > 0)
    if share * whole[0] > whole[-1]:
        with pytest.raises(ValueError, match="exposure: matched is impossible for data-.* have room for"):
            arms_of(curriculum, budget)
        return
    arms = [arm for arm in arms_of(curriculum, budget) if arm.start < 1]
    amounts = [seen(arm, curriculum, budget) for arm in arms]
    assert max(amounts) - min(amounts) <= 4  # samples of two sources, each within 1.7 of its share
    for arm in arms:
        shares = arm.blend_phases(budget)[-1].mix
        assert shares["refusals"] / shares["morals"] == pytest.approx(ratio)
        assert shares["math"] == pytest.approx(3 * shares["web"])


def test_an_arm_with_just_enough_room_reads_interventions_alone():
    """28% of 300 steps are 84; in floating point the share that the late arm needs comes out above 1."""
    mix, budget = {"web": 72, "refusals": 28}, Budget(300 * 64, 16, 4)
    safe = {**SAFE, "refusals": 0.0}  # as written by who switches a source off
    curriculum = Curriculum(safe=safe, interventions={"data": mix}, starts=(0.0, 0.72, 1.0), exposure="matched")
    assert [seen(arm, curriculum, budget) for arm in arms_of(curriculum, budget)] == [336, 336, 0]


def test_a_set_without_interventions_cannot_be_matched():
    curriculum = Curriculum(safe=SAFE, interventions={"data": {"web": 1}}, exposure="matched")
    with pytest.raises(ValueError, match="nothing to match in set data"):
        arms_of(curriculum, SMALL)
    assert arms_of(replace(curriculum, starts=(0.0, 1.0)), SMALL)  # nothing has to match it


@pytest.mark.parametrize("starts", [(), (0.0, 1.0)])
def test_a_written_arm_of_safe_sources_matches_nothing_though_it_has_the_name_of_a_set(starts):
    phases = (PhaseConfig(until=0.5, mix="safe"), PhaseConfig(until=1, mix={"web": 1}))
    curriculum = Curriculum(safe=SAFE, interventions={"data": DATA}, starts=starts, arms={"data": phases}, exposure="matched")
    assert arm_of("data", curriculum).phases[-1].mix == {"web": 1}


def test_a_set_of_interventions_alone_is_its_own_measure():
    mix = {"refusals": 0.3, "morals": 6.0, "tagged": 0.1}
    curriculum = Curriculum(safe=SAFE, interventions={"data": mix}, starts=(0.25, 1.0), exposure="matched")
    assert arm_of("data-25", curriculum).blend_phases(SMALL)[-1].mix == mix


def test_a_phase_that_rounds_to_no_step_is_refused():
    curriculum = with_arm({"until": 0.5, "mix": "safe"}, {"until": 0.5001, "mix": "data"}, {"until": 1, "mix": "safe"})
    with pytest.raises(ValueError, match="arm mine: its phase until 0.5001 rounds to no step of 1000; make it longer"):
        arm_of("mine", curriculum).blend_phases(SMALL)
