"""The order of samples: every prefix follows the weights, and every range is computed alone."""

import hashlib
import itertools
from fractions import Fraction

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from curricula.curriculum.stream.blend import BLOCK, Blend, Order, Phase, integer_weights, permute
from curricula.curriculum.stream.pretraining import ORDER

weights = st.one_of(
    st.integers(1, 100).map(float), st.floats(1e-6, 1.0, allow_nan=False), st.sampled_from([1e-6, 1e-5, 0.001, 0.333, 1 / 3])
)
mixes = st.one_of(
    st.dictionaries(st.sampled_from("abcdefghijkl"), weights, min_size=1),
    st.integers(1, 12).map(lambda count: dict.fromkeys("abcdefghijkl"[:count], 1.0)),  # equal weights tie all the time
    st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(1, 5).map(float), min_size=4),
)


@st.composite
def phase_lists(draw):
    lengths = draw(st.lists(st.integers(1, 1500), min_size=1, max_size=4))
    return [Phase(until, draw(mixes)) for until in itertools.accumulate(lengths)]


@st.composite
def ramps(draw):
    """Up to hundreds of phases of a few samples, like the steps of a ramp, in which sources come and go."""
    count = draw(st.integers(2, 300))
    randomness = draw(st.randoms(use_true_random=False))
    longest, names = draw(st.sampled_from([1, 2, 16, 64])), "abcdefghijkl"[: draw(st.integers(2, 12))]
    kinds = [1.0, 2.0, 0.1, 0.01, 1e-6, 0.3, *([0.0] * draw(st.sampled_from([0, 4])))]
    untils = itertools.accumulate(randomness.randint(1, longest) for _ in range(count))
    mixes = [{name: randomness.choice(kinds) for name in names} for _ in range(count)]
    return [Phase(until, mix if any(mix.values()) else {"a": 1.0}) for until, mix in zip(untils, mixes)]


def furthest(phases: list[Phase]) -> float:
    """By how many samples the count of any source differs from the sum of its shares, at the worst prefix of the run."""
    blend = Blend(phases)
    sources, positions = blend.draw(0, blend.total)
    lengths = np.diff([0, *(phase.until for phase in phases)])
    worst = 0.0
    for number, name in enumerate(blend.sources):
        shares = [phase.mix.get(name, 0) / sum(phase.mix.values()) for phase in phases]
        ideal = np.cumsum(np.repeat(shares, lengths))
        worst = max(worst, np.abs(np.cumsum(sources == number) - ideal).max())
        taken = positions[sources == number]
        assert np.array_equal(taken, np.arange(len(taken)))  # no place is skipped or repeated
    return worst


@examples(1000)
@given(mixes, st.integers(1, 5000))
def test_every_prefix_of_a_phase_follows_the_weights(mix, samples):
    assert furthest([Phase(samples, mix)]) <= 1.69  # see the module's docstring


@examples(1000)
@given(phase_lists())
@example([Phase(222, dict.fromkeys("abcdefghijkl", 1.0)), Phase(237, {**dict.fromkeys("flhdj", 1.0), "b": 25.0})])  # 3
def test_every_prefix_of_a_run_follows_the_weights_of_its_phases(phases):
    assert furthest(phases) <= 4  # as for ramps


@examples(200)
@given(ramps())
def test_errors_do_not_add_up_over_the_steps_of_a_ramp(phases):
    assert furthest(phases) <= 4


@pytest.mark.parametrize(("weight", "length", "phases"), [(0.001, 400, 1000), (0.0012, 400, 1000), (0.1, 4, 1000)])
def test_a_share_too_small_for_one_sample_of_a_phase_is_repaid_by_later_phases(weight, length, phases):
    mixes = [{"web": 1 - weight, "rare": weight, "other": 1e-9 * number} for number in range(phases)]
    blend = Blend([Phase((number + 1) * length, mix) for number, mix in enumerate(mixes)])
    assert abs(blend.counts(blend.total)["rare"] - weight * length * phases) <= 1


@examples(300)
@given(phase_lists(), st.data())
def test_a_range_drawn_alone_equals_that_range_of_the_whole(phases, data):
    blend = Blend(phases)
    start = data.draw(st.integers(0, blend.total))
    stop = data.draw(st.integers(start, blend.total))
    whole, alone = blend.draw(0, blend.total), Blend(phases).draw(start, stop)
    assert np.array_equal(whole[0][start:stop], alone[0]) and np.array_equal(whole[1][start:stop], alone[1])


@examples(300)
@given(phase_lists(), mixes, st.integers(1, 500))
def test_a_changed_future_leaves_the_past_as_it_was(phases, other, length):
    """Arms that share a beginning differ in where its last phase ends and in what follows."""
    short, until = Blend(phases), phases[-1].until
    longer = Phase(until + length, phases[-1].mix)
    long = Blend([*phases[:-1], longer, Phase(until + 2 * length, other)])
    old, new = short.draw(0, until), long.draw(0, until)
    assert [short.sources[s] for s in old[0]] == [long.sources[s] for s in new[0]]
    assert np.array_equal(old[1], new[1])


@examples(300)
@given(phase_lists(), st.data())
def test_counts_agree_with_counting(phases, data):
    blend = Blend(phases)
    index = data.draw(st.integers(0, blend.total))
    sources, _ = blend.draw(0, index)
    assert blend.counts(index) == {name: int(np.sum(sources == n)) for n, name in enumerate(blend.sources)}


@examples(300)
@given(mixes, st.integers(0, 2**50), st.integers(1, 3000))
def test_far_into_a_run_the_counts_equal_the_ideal_in_exact_fractions(mix, start, length):
    blend = Blend([Phase(2**50 + 5000, mix)])
    sources, positions = blend.draw(start, start + length)
    counts, total = blend.counts(start), sum(Fraction(str(weight)) for weight in mix.values())
    for number, name in enumerate(blend.sources):
        ideal = start * Fraction(str(mix[name])) / total
        assert abs(counts[name] - ideal) < 1.69 + start / 2**46  # weights are rounded to one part in 2^48 at worst
        taken = positions[sources == number]
        assert np.array_equal(taken, counts[name] + np.arange(len(taken)))


def test_samples_come_in_the_order_whose_name_checkpoints_store():
    """Code that orders samples in another way needs another name, or else a run that resumes would repeat and miss some."""
    ramp = [{"web": 1 - share, "math": share, "code": 1 / 3, "moral": 1e-6} for share in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)]
    mixes = [dict.fromkeys(("web", "math", "code"), 1.0), *ramp, {"web": 2**-50, "math": 7.0}]
    blend = Blend([Phase(2000 + 500 * number, mix) for number, mix in enumerate(mixes)])
    order = Order(blend, {"web": 700, "math": 1000, "code": 33, "moral": 1}, 42, "samples")
    read = np.stack(order.locate(0, blend.total)).astype("<i8")
    found = ORDER, hashlib.sha256(read.tobytes()).hexdigest()[:16]
    assert found == ("tree with debts, feistel-6", "39281b4bda6536f6")


def test_a_weight_of_one_in_a_million_gets_its_samples():
    blend = Blend([Phase(10_000_000, {"web": 1.0 - 1e-6, "rare": 1e-6})])
    assert blend.counts(10_000_000)["rare"] == 10
    assert integer_weights({"web": 1.0, "rare": 2.0**-60}, ["web", "rare"])[1] == 1


@pytest.mark.slow
def test_the_papers_whole_stream_takes_every_sample_in_turn_and_once():
    """286,102 steps of 1,024 samples over ten sources with a switch after a fifth; then one epoch of it, shuffled."""
    samples = 286_102 * 1024
    mix = {f"source-{number}": 2.0**-number for number in range(10)}
    blend = Blend([Phase(samples // 5, {"source-0": 2.0, "source-1": 1.0}), Phase(samples, mix)])
    following = np.zeros(10, np.int64)
    for start in range(0, samples, BLOCK * 1024):
        sources, positions = blend.draw(start, min(start + BLOCK * 1024, samples))
        for number in range(10):
            taken = positions[sources == number]
            assert np.array_equal(taken, following[number] + np.arange(len(taken)))
            following[number] += len(taken)
    assert following.sum() == samples
    assert dict(zip(blend.sources, following.tolist())) == blend.counts(samples)

    seen = np.zeros(samples, bool)
    for start in range(0, samples, 1 << 22):
        seen[permute(np.arange(start, min(start + (1 << 22), samples)), samples, "order")] = True
    assert seen.all()


def test_a_stream_far_beyond_the_papers_scale_is_exact():
    samples = 2**45
    mix = {f"source-{number}": 0.1 for number in range(10)}
    blend = Blend([Phase(samples // 5, {"source-0": 1.0}), Phase(samples, mix)])
    _, positions = blend.draw(samples - 1000, samples)
    assert sum(blend.counts(samples).values()) == samples
    assert positions.dtype == np.int64 and positions.max() > 2**40


@pytest.mark.parametrize("mix", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}])
def test_weights_that_mean_nothing_are_refused(mix):
    with pytest.raises(ValueError, match="weights must be"):
        Blend([Phase(10, mix)])


def test_a_phase_without_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        Blend([Phase(10, {"a": 1.0}), Phase(10, {"b": 1.0})])
