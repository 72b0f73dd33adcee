"""The keyed permutation: a bijection, computable anywhere, and random enough."""

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from curricula.curriculum.stream.blend import permute


@examples(100)
@given(st.integers(1, 3000), st.integers())
def test_every_place_is_taken_once(size, key):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@examples(50)
@given(st.integers(1, 2**45), st.data())
def test_a_position_computed_alone_equals_the_one_computed_with_others(size, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    together = permute(np.array(positions), size, "key")
    assert [int(permute(np.array([p]), size, "key")[0]) for p in positions] == together.tolist()
    assert together.min() >= 0 and together.max() < size


def test_other_keys_give_other_orders():
    first, second, other = (
        permute(np.arange(1000), 1000, 42, "samples", source, epochs=epoch)
        for source, epoch in (("web", 0), ("web", 1), ("math", 0))
    )
    assert np.mean(first == second) < 0.02 and np.mean(first == other) < 0.02


@examples(50)
@given(st.integers(1, 2000), st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
def test_epochs_computed_together_equal_those_computed_alone(size, epochs):
    positions = np.arange(size * len(epochs)) % size
    together = permute(positions, size, "key", epochs=np.repeat(epochs, size))
    assert np.array_equal(together, np.concatenate([permute(np.arange(size), size, "key", epochs=e) for e in epochs]))


def test_places_are_spread_evenly():
    places = [int(permute(np.array([0]), 10, seed)[0]) for seed in range(3000)]
    assert chisquare(np.bincount(places, minlength=10)).pvalue > 1e-4
    steps = np.diff(permute(np.arange(100_000), 100_000, "steps"))
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.02  # as for differences of independent draws


@pytest.mark.parametrize(
    ("positions", "size", "message"), [([10], 10, "must lie"), ([-1], 10, "must lie"), ([], 0, "positive size")]
)
def test_positions_outside_of_what_is_permuted_are_refused(positions, size, message):
    with pytest.raises(ValueError, match=message):
        permute(np.array(positions), size, "key")
