"""Coverage over training seeds: how often 95% intervals hold the truth, by method, and how often equal arms get a verdict.

    python tests/benchmarks/seed_coverage.py
    python tests/benchmarks/seed_coverage.py --seeds 3 --studies 1000 --json coverage.json

First two tables: intervals of a rate, and of the difference of two arms of which the second has 0.6 times the first's rate.
Each cell of the simulation (`tests/support/seed_studies.py`) is a number of prompts, a rate, a standard deviation over seeds
and a correlation between answers to one prompt, with five answers each. Shown for each method: the mean over all cells, and
the lowest mean of the nine groups with the same deviation over seeds and correlation (18 cells each, uncertain by 1 point at 25
studies a cell). Third table: arms with equal rates; how often p is below 0.05, and below Holm's
first step among 18 claims. Fourth: the paper's claims on seven equal arms with five seeds.
"""

from __future__ import annotations

import itertools
import math
import sys

import machine
import numpy as np
from scipy import special

sys.path += [str(machine.ROOT / "tests" / "support")]

from seed_studies import Cell, SimulatedRuns, crossed, draw_rates, holds, pooled_pairs, pooled_tally
from study_rows import ARMS

from curricula.eval.analysis import StudyRows
from curricula.eval.analysis.claims import CLAIMS, run_claim_tests
from curricula.eval.analysis.seeds import Crossed, CrossedAndPooled, interval_over_seeds
from curricula.eval.analysis.statistics import NORMAL_95, rate_interval
from curricula.randomness import keyed_rng

PROMPTS = (30, 100, 500)
RATES = (0.01, 0.05, 0.1, 0.3, 0.5, 0.9)
SEED_SDS = (0.0, 0.05, 0.16)
CORRELATIONS = (0.0, 0.4, 0.8)
RESAMPLES = 200
CHOSEN = "chosen: Cochran's combination, never surer than prompts alone"


def t_quantile(freedom: float) -> float:
    return float(special.stdtrit(max(freedom, 1.0), 0.975))


def rejected(values: np.ndarray, found: Crossed, weights: tuple[np.ndarray, np.ndarray]) -> dict[str, tuple[float, float]]:
    """The intervals of other methods, for values [seeds, prompts]."""
    seed, prompt, value = found.seed_variance, found.prompt_variance, found.value
    prompts = values.shape[1]
    both = seed + prompt
    satterthwaite = both**2 / (seed**2 / (found.seeds - 1) + prompt**2 / (prompts - 1)) if both > 0 else 1.0
    clustered = max(both, prompt + found.within / found.seeds / prompts)  # seeds plus prompts minus their intersection
    reaches = {
        "t over seeds": t_quantile(found.seeds - 1) * math.sqrt(seed),
        "two-way clustered error, normal": NORMAL_95 * math.sqrt(clustered),
        "mixed model (REML), Wald": NORMAL_95 * math.sqrt(both),
        "mixed model (REML), Satterthwaite": t_quantile(satterthwaite) * math.sqrt(both),
        "Cochran's combination alone": found.reach,
    }
    drawn = np.sum((weights[0] @ values) * weights[1], axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    edge = 1e-9
    return {name: (value - reach - edge, value + reach + edge) for name, reach in reaches.items()} | {
        "crossed bootstrap": (low - edge, high + edge)
    }


def bootstrap_weights(rng: np.random.Generator, seeds: int, prompts: int) -> tuple[np.ndarray, np.ndarray]:
    one, other = (rng.multinomial(n, [1 / n] * n, size=RESAMPLES) / n for n in (seeds, prompts))
    return one, other


def coverage(cell: Cell, studies: int) -> tuple[dict[str, float], dict[str, float]]:
    """The share of studies whose interval holds the truth, by method: of the first arm's rate, and of the difference."""
    rng = keyed_rng("seed coverage", *vars(cell).values(), 0)
    weights = bootstrap_weights(rng, cell.seeds, cell.prompts)
    truths = (cell.rates[0], cell.rates[0] - cell.rates[1])
    held: tuple[dict[str, int], dict[str, int]] = ({}, {})

    def count(which: int, name: str, hit: bool) -> None:
        held[which][name] = held[which].get(name, 0) + bool(hit)

    for a, b in zip(*draw_rates(rng, cell, studies)):
        tallied, over_seeds = pooled_tally(a, cell.samples), crossed(a)
        prompts_alone = rate_interval(tallied)
        intervals = {"prompts alone": prompts_alone, **rejected(a, over_seeds, weights)}
        rate, reach = over_seeds.value, over_seeds.reach
        if rate * (1 - rate) > 0 and reach > 0:
            size = rate * (1 - rate) * (NORMAL_95 / reach) ** 2 + NORMAL_95**2
            centre = rate + (0.5 - rate) * NORMAL_95**2 / size
            wide = NORMAL_95 * math.sqrt(centre * (1 - centre) / size)
            intervals["effective number of answers alone"] = (centre - wide, centre + wide)
        else:
            intervals["effective number of answers alone"] = (rate, rate)
        intervals[CHOSEN] = interval_over_seeds(tallied, over_seeds)
        for name, (low, high) in intervals.items():
            count(0, name, low <= truths[0] <= high)
        pairs = pooled_pairs(a, b, cell.samples)
        count(1, "prompts alone", abs(pairs.score(truths[1])) <= NORMAL_95)
        for name, (low, high) in rejected(a - b, crossed(a - b), weights).items():
            count(1, name, low <= truths[1] <= high)
        count(1, CHOSEN, holds(a, b, truths[1], cell.samples))
    return tuple({name: hits / studies for name, hits in each.items()} for each in held)  # type: ignore[return-value]


def false_alarms(seeds: int, studies: int) -> dict[str, float]:
    """How often two arms of equal rates differ significantly."""
    cell, found = Cell(seeds, 60, (0.4, 0.4)), {"p < 0.05": 0, "p < 0.05 / 18": 0}
    for a, b in zip(*draw_rates(keyed_rng("alarms", seeds), cell, studies)):
        one, pooled = crossed(a - b), pooled_pairs(a, b, cell.samples)
        for name, alpha in zip(found, (0.05, 0.05 / 18)):
            if one.reach_squared(alpha) < one.value**2:
                found[name] += CrossedAndPooled(one, pooled).p(0.0) < alpha
    return {name: count / studies for name, count in found.items()}


def null_verdicts(seeds: int, seed_sd: float, studies: int) -> dict[str, float]:
    """The shares of directed claims with a verdict, and of studies with any, where all arms are alike."""
    directed = [claim for claim in CLAIMS if claim.direction in ("lower", "higher")]
    verdicts = []
    for study in range(studies):
        runs = SimulatedRuns(StudyRows(tuple(ARMS), {}, {}), cell=Cell(seeds, 60, (0.4,), seed_sd), number=study)
        verdicts.append([test.outcome for test in run_claim_tests(runs, directed)])
    shares = {name: float(np.mean(np.array(verdicts) == name)) for name in ("reproduced", "not reproduced")}
    decided = [any(outcome in shares for outcome in study) for study in verdicts]
    return {**shares, "studies with any": float(np.mean(decided))}


def main() -> None:
    options = machine.parser(__doc__)
    options.add_argument("--studies", type=int, default=25, help="simulated studies of each cell")
    options.add_argument("--seeds", type=int, nargs="*", default=(2, 3, 5, 10), help="numbers of training seeds")
    options.add_argument("--null", type=int, default=50, help="simulated studies of equal arms; 100 times as many pairs")
    args = options.parse_args()
    measured = []
    for seeds in args.seeds:
        settings = itertools.product(PROMPTS, RATES, SEED_SDS, CORRELATIONS)
        for prompts, rate, seed_sd, correlation in settings:
            cell = Cell(seeds, prompts, (rate, 0.6 * rate), seed_sd, correlation)
            for of, shares in zip(("rate", "difference"), coverage(cell, args.studies)):
                measured += [{**vars(cell), "of": of, "method": name, "coverage": held} for name, held in shares.items()]
    tables = []
    for of in ("rate", "difference"):
        title = f"Coverage of a {of}, in %: mean over all cells / lowest group"
        table = machine.table(title, "method", *(f"{seeds} seeds" for seeds in args.seeds))
        for name in dict.fromkeys(one["method"] for one in measured if one["of"] == of):
            shown = []
            for seeds in args.seeds:
                groups: dict[tuple[float, float], list[float]] = {}
                for one in measured:
                    if (one["of"], one["method"], one["seeds"]) == (of, name, seeds):
                        groups.setdefault((one["seed_sd"], one["correlation"]), []).append(one["coverage"])
                means = [np.mean(cells) for cells in groups.values()]
                shown.append(f"{100 * np.mean(means):.1f} / {100 * min(means):.1f}")
            table.add_row(name, *shown)
        tables.append(table)
    alarms = machine.table("Equal arms: how often they differ, in %", "seeds", "p < 0.05", "p < 0.05 / 18")
    for seeds in args.seeds:
        shares = false_alarms(seeds, 100 * args.null)
        alarms.add_row(str(seeds), *(f"{100 * share:.2f}" for share in shares.values()))
        measured.append({"seeds": seeds, "of": "equal arms", **shares})
    verdicts = machine.table(
        "The paper's 16 directed claims on equal arms, five seeds: verdicts, in %",
        "sd over seeds", "reproduced", "not reproduced", "studies with any",
    )  # fmt: skip
    for seed_sd in (0.0, 0.1, 0.16):
        shares = null_verdicts(5, seed_sd, args.null)
        verdicts.add_row(f"{seed_sd:g}", *(f"{100 * share:.1f}" for share in shares.values()))
        measured.append({"seed_sd": seed_sd, "of": "claims", **shares})
    machine.report(args, [*tables, alarms, verdicts], [], measured)


if __name__ == "__main__":
    main()
