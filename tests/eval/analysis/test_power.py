"""Power before money: it agrees with simulated studies, and is nil where nothing can be tested."""

from __future__ import annotations

import numpy as np
import pytest
from seed_studies import crossed

from curricula.eval.analysis.power import ASSUMED, Design, averaged, detectable, equal_prompts, power, table
from curricula.eval.analysis.seeds import Components
from curricula.randomness import keyed_rng


def simulated(effect: float, design: Design, components: Components, alpha: float, studies: int) -> float:
    """The share of simulated studies in which a true difference of `effect` is found."""
    rng, found = keyed_rng("power", effect, *vars(design).values(), alpha), 0
    scales = np.sqrt([components.seed, components.prompt, components.interaction + components.sample / design.samples])
    for _ in range(studies):
        parts = (rng.normal(size=shape) for shape in ((design.seeds, 1), (1, design.prompts), (design.seeds, design.prompts)))
        one = crossed(effect + sum(scale * part for scale, part in zip(scales, parts)))
        found += one.reach_squared(alpha) < one.value**2  # as p < alpha, but quicker
    return found / studies


SMALL_SEEDS = Components(seed=0.02**2, prompt=0.25**2, interaction=0.354**2, sample=0.5**2)


@pytest.mark.parametrize(
    ("effect", "design", "components", "claims"),
    [
        (0.2, Design(3, 60, 5), ASSUMED, 1),
        (0.15, Design(5, 60, 5), ASSUMED, 1),
        (0.3, Design(5, 200, 1), ASSUMED, 18),
        (0.1, Design(5, 60, 5), SMALL_SEEDS, 1),
    ],
)  # fmt: skip
def test_it_agrees_with_simulated_studies_within_three_points(effect, design, components, claims):
    alpha = 0.05 / claims
    share = simulated(effect, design, components, alpha, 3000)
    assert power(effect, design, components, alpha) == pytest.approx(share, abs=0.03)


def test_a_single_run_detects_nothing_and_two_next_to_nothing():
    assert power(0.9, Design(1, 10_000, 5)) == 0 and detectable(Design(1, 10_000, 5)) is None
    assert detectable(Design(2, 60, 5)) is None
    assert detectable(Design(3, 60, 5), alpha=0.05 / 18) is None


def test_without_an_effect_it_is_the_level_at_most():
    for design in (Design(2, 60, 5), Design(3, 60, 5), Design(10, 500, 1)):
        assert 0.01 < power(0.0, design) <= 0.0501
        assert power(0.0, design, alpha=0.05 / 18) <= 0.0029


def test_every_seed_lowers_the_smallest_difference_and_costs_its_hours():
    rows = table(Design(3, 60, 5), hours_per_seed=10.0, claims=18)
    assert [(row.seeds, row.gpu_hours) for row in rows] == [(3, 30.0), (4, 40.0), (5, 50.0)]
    assert rows[0].unadjusted > rows[1].unadjusted > rows[2].unadjusted
    assert rows[0].holm is None and rows[2].holm > 1.5 * rows[2].unadjusted
    told = (rows[0].unadjusted, rows[2].unadjusted, rows[2].holm)  # in docs/statistics.md
    assert told == pytest.approx((0.32, 0.18, 0.37), abs=0.005)
    for row in rows:
        assert power(row.unadjusted, Design(row.seeds, 60, 5)) == pytest.approx(0.8, abs=0.005)


def test_more_prompts_do_not_stand_in_for_seeds():
    assert detectable(Design(3, 100_000, 5)) > 0.6 * detectable(Design(3, 60, 5))
    assert detectable(Design(3, 60, 5), Components(0.0, 0.0, 0.0, 0.25)) < 0.1


def test_measured_components_are_averaged_over_comparisons():
    assert averaged([Components(0.1, 0.2, 0.3, 0.4), Components(0.3, 0.0, 0.1, 0.4)]) == Components(
        pytest.approx(0.2), pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.4)
    )
    assert averaged([]) is None


def test_benchmarks_of_unequal_sizes_count_as_prompts_whose_mean_varies_as_theirs():
    sizes, rng = (400, 60, 20), keyed_rng("sizes")
    means = np.mean([rng.normal(size=(20_000, size)).mean(axis=1) for size in sizes], axis=0)
    assert equal_prompts(sizes) == pytest.approx(1 / means.var(), rel=0.05)
    assert equal_prompts((60, 60)) == pytest.approx(120)
