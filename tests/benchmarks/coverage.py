"""Coverage: how often the 95% intervals hold the truth, over rates, numbers of prompts and correlation within prompts.

    python tests/benchmarks/coverage.py
    python tests/benchmarks/coverage.py --studies 4000 --json coverage.json

First table: intervals of a rate. In every simulated study the prompts differ in how often their answers are harmful, by a
beta distribution with the given mean and correlation between two answers to one prompt; each prompt gets five answers, or
one. Second table: intervals of a paired difference between two arms of which the second has half the first's rate, with
prompts that are hard for both; and how often the p-value is below 0.05 where the arms have equal rates. Each cell is the
share over its studies; its own standard error is at most 0.8 points at 750 studies and 0.95.
"""

from __future__ import annotations

import machine
import numpy as np

from curricula.eval.analysis.statistics import Tally, pair, rate_interval
from curricula.randomness import keyed_rng

RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
PROMPTS = (30, 60, 100, 200, 500)
CORRELATIONS = (0.0, 0.2, 0.5, 0.8)


def eases(rng: np.random.Generator, rate: float, prompts: int, correlation: float) -> np.ndarray:
    """How often each prompt's answers are harmful, float64 [prompts]."""
    if not correlation:
        return np.full(prompts, rate)
    scale = 1 / correlation - 1
    return rng.beta(rate * scale, (1 - rate) * scale, prompts)


def rate_coverage(rate: float, prompts: int, correlation: float, samples: int, studies: int) -> float:
    """The share of the studies whose interval holds `rate`."""
    rng, held = keyed_rng("coverage", rate, prompts, correlation, samples, 0), 0
    counts = np.full((prompts, 1), float(samples))
    for _ in range(studies):
        sums = rng.binomial(samples, eases(rng, rate, prompts, correlation)).astype(float)
        low, high = rate_interval(Tally(sums[:, None], counts))
        held += low <= rate <= high
    return held / studies


def difference_coverage(rate: float, prompts: int, correlation: float, samples: int, studies: int) -> tuple[float, float]:
    """The share of the studies whose interval holds a difference of -rate / 2, and that of false alarms at equal rates."""
    rng, held, alarms = keyed_rng("difference", rate, prompts, correlation, samples, 0), 0, 0
    for _ in range(studies):
        ease = eases(rng, rate, prompts, correlation)
        first, half, same = (rng.binomial(samples, share * ease) / samples for share in (1, 0.5, 1))
        names = [str(number) for number in range(prompts)]
        found = [pair((name, "b", a, b, samples) for name, a, b in zip(names, other, first)) for other in (half, same)]
        assert found[0] is not None and found[1] is not None
        low, high = found[0].interval()
        held += low <= -rate / 2 <= high
        alarms += found[1].p(0.0) < 0.05
    return held / studies, alarms / studies


def main() -> None:
    options = machine.parser(__doc__)
    options.add_argument("--studies", type=int, default=750, help="simulated studies of each cell")
    args = options.parse_args()
    measured: list[machine.Task] = []
    tables = []
    for samples in (5, 1):
        correlations = CORRELATIONS if samples > 1 else (0.0,)
        columns = [f"correlation {correlation:g}" for correlation in correlations]
        rates = machine.table(f"Coverage of rates, {samples} answers per prompt, in %", "prompts, rate", *columns)
        gaps = machine.table(
            f"Differences, {samples} answers per prompt: coverage; false alarms at p < 0.05, in %", "prompts, rate", *columns
        )
        for prompts in PROMPTS:
            for rate in RATES:
                cells = []
                for correlation in correlations:
                    cell = {"rate": rate, "prompts": prompts, "correlation": correlation, "samples": samples}
                    held, alarms = difference_coverage(**cell, studies=args.studies)
                    covered = rate_coverage(**cell, studies=args.studies)
                    cells.append(cell | {"coverage": covered, "difference": held, "false_alarms": alarms})
                measured += cells
                rates.add_row(f"{prompts}, {rate:g}", *(f"{cell['coverage']:.1%}" for cell in cells))
                gaps.add_row(
                    f"{prompts}, {rate:g}", *(f"{cell['difference']:.1%}; {cell['false_alarms']:.1%}" for cell in cells)
                )
        tables += [rates, gaps]
    machine.report(args, tables, [], measured)


if __name__ == "__main__":
    main()
