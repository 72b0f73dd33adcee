"""Arms of any shape: changed mixes, cooldowns and masks, matched exposure, and the training tree that they share."""

import itertools
from dataclasses import replace

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from curricula.curriculum.config import Curriculum, PhaseConfig, Source
from curricula.curriculum.plan import Budget, Replicate, arms_of, intervention_share
from curricula.curriculum.stream.blend import Blend, exact_shares
from curricula.curriculum.tree import branch_of, lines_of, training_tree
from curricula.model.config import OptimizerConfig, ScheduleConfig, learning_rate

SMALL = Budget(1000 * 64, 16, 4)  # a thousand steps
DECAYS_AT = 900
SAFE, DATA = {"web": 3, "math": 1}, {"web": 2, "math": 1, "refusals": 1}


def with_arms(exposure="natural", starts=(0.0, 1.0), interventions=None, **arms):
    written = {name: tuple(PhaseConfig(**phase) for phase in phases) for name, phases in arms.items()}
    sets = {"data": DATA} if interventions is None else interventions
    return Curriculum(safe=SAFE, interventions=sets, starts=starts, arms=written, exposure=exposure)


def arm_of(name, curriculum, budget=SMALL):
    return next(arm for arm in arms_of(curriculum, budget) if arm.name == name)


def tree_of(curriculum, budget=SMALL):
    return training_tree(lines_of(arms_of(curriculum, budget), curriculum, budget, DECAYS_AT)).segments


def seen(arm, names, budget=SMALL):
    """Samples of the sources `names` that an arm reads."""
    blend = Blend(arm.blend_phases(budget))
    return sum(count for name, count in blend.counts(blend.total).items() if name in names)


# Mixes that are said by how they differ -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "shares"),
    [
        ({"drop": ["math"]}, {"web": 2 / 3, "refusals": 1 / 3}),
        ({"replace": {"refusals": "rephrased"}}, {"web": 0.5, "math": 0.25, "rephrased": 0.25}),
        ({"replace": {"refusals": "math"}}, {"web": 0.5, "math": 0.5}),
        ({"add": {"tagged": 0.2}}, {"web": 0.4, "math": 0.2, "refusals": 0.2, "tagged": 0.2}),
        ({"add": {"web": 0.1}}, {"web": 0.55, "math": 0.225, "refusals": 0.225}),
        ({"drop": ["math"], "replace": {"refusals": "new"}, "add": {"math": 0.5}}, {"web": 1 / 3, "new": 1 / 6, "math": 0.5}),
    ],
)
def test_a_phase_reads_a_mix_with_some_sources_dropped_replaced_or_added(changes, shares):
    phases = arm_of("mine", with_arms(mine=[{"until": 1, "mix": "data", **changes}])).blend_phases(SMALL)
    assert len(phases) == 1
    total = sum(phases[0].mix.values())
    assert {name: weight / total for name, weight in phases[0].mix.items()} == pytest.approx(shares)


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([{"until": 1, "mix": "safe", "drop": ["web"], "replace": {"web": "math"}}], "drop and replace both name 'web'; keep"),
        ([{"until": 1, "mix": "safe", "drop": ["refusals"]}], "drop and replace can name web, math, .* not 'refusals'"),
        ([{"until": 1, "mix": "safe", "replace": {"refusals": "web"}}], "arm mine, phase 0: drop and replace can name web"),
        ([{"until": 1, "mix": "safe", "drop": ["web", "math"]}], "phase 0: the weights of its mix must be .* not all zero"),
        ([{"until": 1, "mix": "safe", "add": {"a": 0.7, "b": 0.3}}], "shares in add must sum to less than 1, not to 1"),
        ([{"until": 1, "mix": "data", "cooldown": True}], "phase 0 cannot be a cooldown; only the last of several"),
        (
            [{"until": 0.5, "mix": "safe"}, {"until": 0.6, "mix": "data", "cooldown": True}, {"until": 1, "mix": "safe"}],
            "phase 1 cannot be a cooldown",
        ),
    ],
)
def test_changes_that_do_not_fit_the_mix_are_refused(phases, said):
    with pytest.raises(ValueError, match=said):
        with_arms(mine=phases)


def test_tags_cannot_carry_the_loss_of_a_source_without_tags():
    with pytest.raises(ValueError, match="loss is 'tags', but tag_rate is 0, so no token would count"):
        Source(dataset="fineweb-unsafe", loss="tags")


# Shared pasts ---------------------------------------------------------------------------------------------------------


def test_a_cooldown_on_another_mix_branches_from_the_arm_that_it_ends_differently():
    curriculum = with_arms(late=[{"until": 0.8, "mix": "data"}, {"until": 1, "mix": "data", "add": {"tagged": 0.1}}])
    found = [(one.name, one.start, one.parent) for one in tree_of(curriculum)]
    assert found == [
        ("trunk@1000", 0, None),
        ("data-0@800", 0, None),
        ("data-0@1000", 800, "data-0@800"),
        ("late@1000", 800, "data-0@800"),
    ]


def test_a_trunk_whose_model_the_study_does_not_use_ends_where_the_last_arm_leaves_it():
    assert [one.name for one in tree_of(with_arms(starts=(0.2, 0.5)))] == [
        "trunk@200",
        "trunk@500",
        "data-20@1000",
        "data-50@1000",
    ]


def test_an_earlier_decay_ends_what_two_arms_share():
    phases = [{"until": 0.7, "mix": "data"}, {"until": 1, "mix": "data", "cooldown": True}]
    assert [one.name for one in tree_of(with_arms(mine=phases))][1:] == ["data-0@700", "data-0@1000", "mine@1000"]
    late = [{"until": 0.95, "mix": "safe"}, {"until": 1, "mix": "data", "cooldown": True}]
    assert [one.name for one in tree_of(with_arms(late=late, starts=(1.0,)))] == ["trunk@900", "trunk@1000", "late@1000"]


def test_arms_that_begin_unfiltered_share_what_they_read_unfiltered():
    raw = {"until": 0.6, "mix": "safe", "add": {"unsafe": 0.05}}
    curriculum = with_arms(
        starts=(1.0,),
        unfiltered=[{**raw, "until": 1}],
        cleaned=[raw, {"until": 1, "mix": "safe"}],
        rephrased=[raw, {"until": 1, "mix": {**SAFE, "unsafe": 4 / 19}, "replace": {"unsafe": "safeweb"}}],
    )
    assert {one.name: one.parent for one in tree_of(curriculum)} == {
        "trunk@1000": None,
        "unfiltered@600": None,
        "unfiltered@1000": "unfiltered@600",
        "cleaned@1000": "unfiltered@600",
        "rephrased@1000": "unfiltered@600",
    }


def test_two_names_for_one_training_are_refused():
    curriculum = with_arms(again=[{"until": 1, "mix": "data"}])
    with pytest.raises(ValueError, match="arms data-0 and again read the same to the end; leave one of them out"):
        tree_of(curriculum)


mixes = st.sampled_from(
    [{"mix": "safe"}, {"mix": "data"}, {"mix": "data", "add": {"tagged": 0.1}}, {"mix": "safe", "drop": ("math",)}]
)


@st.composite
def curricula(draw):
    """A few arms, all of whose phases end at one of the same fractions, so that many share a beginning."""
    arms = {}
    for number in range(draw(st.integers(1, 5))):
        ends = [*sorted(draw(st.sets(st.sampled_from([0.2, 0.5, 0.85, 0.95]), max_size=3))), 1.0]
        phases = [{"until": until, **draw(mixes), "ramp": draw(st.sampled_from([1, 1, 3]))} for until in ends]
        phases[-1]["cooldown"] = len(ends) > 1 and draw(st.booleans())
        if any(phase["mix"] != "safe" or phase.get("drop") for phase in phases):
            arms[f"arm-{number}"] = phases
    return with_arms(starts=draw(st.sampled_from([(0.0, 1.0), (0.2, 0.5), (1.0,)])), **arms)


@examples(100)
@given(curricula())
def test_each_arm_is_trained_whole_once_and_by_its_own_stream_and_learning_rate(curriculum):
    try:
        segments = {one.name: one for one in tree_of(curriculum)}
    except ValueError as error:
        assert "read the same to the end" in str(error)
        return
    arms = [arm for arm in arms_of(curriculum, SMALL) if arm.start < 1]
    phases = {arm.name: arm.blend_phases(SMALL) for arm in (*arms, *(one.arm for one in segments.values()))}

    def at(arm, step):
        """What an arm's step depends on: its mix, and how far its decay is."""
        phase = next(one for one in phases[arm.name] if step * 4 < one.until)
        falls = DECAYS_AT if arm.cooldown is None else SMALL.step_at(arm.cooldown)
        return exact_shares(phase.mix), max(0, step - falls), falls if step > falls else None

    for arm in arms:
        piece, ends = segments[f"{arm.name}@1000"], 1000
        while True:
            assert piece.stop == ends and piece.start < piece.stop
            for step in {piece.start, (piece.start + ends) // 2, ends - 1}:
                assert at(piece.arm, step) == at(arm, step)
            if piece.parent is None:
                break
            ends, piece = piece.start, segments[piece.parent]
        assert piece.start == 0
    # Nothing is trained twice: two pieces over the same steps differ somewhere before the first of their ends.
    roots = [one for one in segments.values() if one.parent is None]
    for one, other in itertools.combinations(roots, 2):
        assert at(one.arm, 0) != at(other.arm, 0)
    for parent in segments.values():
        children = [one for one in segments.values() if one.parent == parent.name]
        for one, other in itertools.combinations(children, 2):
            assert at(one.arm, one.start + 1) != at(other.arm, other.start + 1)


@examples(100)
@given(st.lists(st.tuples(curricula(), st.sampled_from([500, 1000]), st.sampled_from([0.1, 0.55]), st.booleans()), max_size=3))
def test_points_of_a_sweep_share_only_steps_of_equal_data_learning_rate_and_settings(points):
    lines, wanted, at = [], {}, {}
    for number, (curriculum, steps, decay, is_other) in enumerate(points):
        budget, point = Budget(steps * 64, 16, 4), Replicate(suffix=f".{number}", variant=str(number))
        arms = [replace(arm, replicate=point) for arm in arms_of(curriculum, budget)]
        own = lines_of(arms, curriculum, budget, steps - round(decay * steps), recipe=is_other)
        try:
            training_tree(own)
        except ValueError as error:
            assert "read the same to the end; leave one of them out" in str(error)
            return
        lines += own
        for line in own:
            at[branch_of(line.arm)] = (line, line.arm.blend_phases(budget), is_other)
            wanted |= {line.arm.key: line} if line.is_wanted else {}

    def step_of(branch, step):
        line, phases, is_other = at[branch]
        schedule = ScheduleConfig(warmup_steps=20, decay_fraction=1 - line.decays_at / line.steps)
        mix = next(exact_shares(phase.mix) for phase in phases if step * 4 < phase.until)
        return is_other, mix, learning_rate(step, line.steps, OptimizerConfig(), schedule)

    tree = training_tree(lines)
    segments = {one.name: one for one in tree.segments}
    for key, line in wanted.items():
        piece, end = segments[f"{tree.branches[key]}@{line.steps}"], line.steps
        while True:
            assert piece.start < end == piece.stop
            for step in {piece.start, (piece.start + end) // 2, end - 1}:
                assert step_of(piece.branch, step) == step_of(branch_of(line.arm), step)
            if piece.parent is None:
                break
            end, piece = piece.start, segments[piece.parent]
        assert piece.start == 0
    trained = sum(one.stop - one.start for one in tree.segments)
    assert trained <= sum(one.stop - one.start for number in range(len(points)) for one in _alone(lines, str(number)))


def _alone(lines, variant):
    """The segments of one point without the others."""
    return training_tree([line for line in lines if line.arm.replicate.variant == variant]).segments


# Matched exposure -----------------------------------------------------------------------------------------------------


def test_every_shape_of_an_arm_sees_as_much_of_its_set_as_the_earliest_arm():
    curriculum = with_arms(
        exposure="matched",
        interventions={"data": {"web": 6, "math": 2, "refusals": 1}},
        ramp=[{"until": 0.2, "mix": "safe"}, {"until": 0.9, "mix": "data", "ramp": 7}, {"until": 1, "mix": "data"}],
        dose=[{"until": 0.3, "mix": "safe"}, {"until": 0.6, "mix": "data"}, {"until": 1, "mix": "safe"}],
        replay=[{"until": 0.8, "mix": "safe"}, {"until": 1, "mix": "safe", "add": {"refusals": 0.05}, "cooldown": True}],
        strong=[{"until": 1, "mix": {"refusals": 1}}],
        unfiltered=[{"until": 1, "mix": "safe", "add": {"unsafe": 0.05}}],
        without=[{"until": 1, "mix": "data", "drop": ["refusals", "math"]}],
    )
    arms = {arm.name: arm for arm in arms_of(curriculum, SMALL)}
    wanted = seen(arms["data-0"], {"refusals"})
    for name in ("ramp", "dose", "replay", "strong"):
        assert abs(seen(arms[name], {"refusals"}) - wanted) <= 4, name
    assert arms["ramp"].phases[0].mix == SAFE and arms["dose"].phases[2].mix == SAFE  # safe phases stay as they are
    shares = [intervention_share(mix, curriculum) for _, mix in arms["ramp"].phases[1:-1]]
    assert shares == pytest.approx([shares[0] * (2 * step + 1) for step in range(7)])  # still a straight line
    assert seen(arms["unfiltered"], {"unsafe"}) == pytest.approx(200, abs=4)  # reads no intervention of another arm


def test_interventions_alone_are_thinned_with_safe_data():
    names = ("refusals", "morals", "tagged")
    alone = {"refusals": 1, "morals": 4, "tagged": 1}  # in floating point their shares sum to less than 1
    curriculum = with_arms(
        exposure="matched",
        interventions={"data": {"web": 6, "math": 2, **dict.fromkeys(names, 1)}},
        strong=[{"until": 1, "mix": alone}],
    )
    first, strong = (Blend(arm_of(name, curriculum).blend_phases(SMALL)).counts(4000) for name in ("data-0", "strong"))
    assert abs(sum(strong[name] - first[name] for name in names)) <= 4
    assert [strong[name] for name in ("morals", "web")] == pytest.approx([4 * strong["tagged"], 3 * strong["math"]], abs=8)


def test_a_dose_too_short_for_what_it_must_match_is_refused_with_the_numbers():
    curriculum = with_arms(
        exposure="matched", dose=[{"until": 0.3, "mix": "safe"}, {"until": 0.4, "mix": "data"}, {"until": 1, "mix": "safe"}]
    )
    said = (
        "exposure: matched is impossible for dose: the first arm with its interventions sees 16,000 tokens of them, but its "
        "own phases have room for only 6,400; lower the weights of the first, or leave dose out"
    )
    with pytest.raises(ValueError, match=said):
        arms_of(curriculum, SMALL)


def test_sets_of_the_same_sources_in_other_doses_are_each_their_own_measure():
    sets = {"weak": {"web": 9, "refusals": 1}, "strong": {"web": 5, "refusals": 5}}
    late = [{"until": 0.5, "mix": "safe"}, {"until": 1, "mix": "strong"}]
    with pytest.raises(ValueError, match="impossible for late|room"):
        arms_of(with_arms(exposure="matched", interventions={**sets, "strong": {"refusals": 1}}, late=late), SMALL)
    arms = {arm.name: arm for arm in arms_of(with_arms(exposure="matched", interventions=sets, late=late), SMALL)}
    assert [round(seen(arms[name], {"refusals"}), -1) for name in ("weak-0", "strong-0", "late")] == [400, 2000, 2000]


@examples(300)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.just(0.0) | st.floats(1e-12, 1)), min_size=1, max_size=5),
    st.floats(0.001, 0.9),
    st.integers(1, 5),
)
def test_matched_exposure_is_exact_or_refused_for_any_phases(lengths, share, ramp):
    total = sum(length for length, _ in lengths)
    budget, ends = Budget(total * 64, 16, 4), list(itertools.accumulate(length for length, _ in lengths))
    phases = [
        {"until": end / total if end < total else 1, "mix": {"web": 1 - part, "refusals": part}, "ramp": min(ramp, length)}
        for end, (length, part) in zip(ends, lengths)
    ]
    if not any(part for _, part in lengths):
        return
    sets = {"data": {"web": 1 - share, "refusals": share}}
    curriculum = with_arms(exposure="matched", interventions=sets, mine=phases)
    try:
        arms = {arm.name: arm for arm in arms_of(curriculum, budget)}
        arms["mine"].blend_phases(budget)
    except ValueError as error:
        assert any(said in str(error) for said in ("matched is impossible for mine", "rounds to no step"))
        return
    counts = [seen(arms[name], {"refusals"}, budget) for name in ("data-0", "mine")]
    assert abs(counts[0] - counts[1]) <= 4
