"""The paper's claims, tested over training seeds on rows whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable

import msgspec
import pytest
from seed_studies import Cell, SimulatedRuns, by_seed
from study_rows import ARMS, attack_rows, generation, overrefusal_rows, probe_rows, trained

from curricula.eval.analysis import ArmInfo, StudyRows
from curricula.eval.analysis.claims import (
    BOTH,
    CLAIMS,
    NEVER,
    NOTHING_SHARED,
    SINGLE_RUN,
    TOPK,
    Claim,
    ClaimTest,
    Direction,
    run_claim_tests,
)
from curricula.eval.analysis.metrics import harmful
from curricula.eval.analysis.runs import Competence, Runs, runs_of
from curricula.eval.analysis.seeds import BySeed
from curricula.eval.analysis.statistics import Outcome
from curricula.eval.rows import JudgedRow, ProbeRow
from curricula.randomness import keyed_rng

PROMPTS = {"harmbench": 75, "tdc": 25}
SEEDS = (1, 2, 3, 4, 5)


def claim(name: str) -> Claim:
    return next(each for each in CLAIMS if each.id == name)


def answered(stage: str, task: str, rows: Callable[[ArmInfo, int], list[JudgedRow]], seeds=SEEDS) -> Runs:
    """The runs of all arms, each of which has answered one task as `rows` says of an arm and a training seed."""
    arms = [trained(arm, seed) for seed in seeds for arm in ARMS]
    return runs_of(StudyRows(tuple(arms), {(arm.key, stage, task): rows(arm, arm.seed) for arm in arms}, {}))


def probed(rows: Callable[[ArmInfo], list[ProbeRow]]) -> Runs:
    """The runs of all arms, with the probes of base models that `rows` says of a trained arm."""
    arms = [trained(arm, seed) for seed in SEEDS for arm in ARMS]
    return runs_of(StudyRows(tuple(arms), {}, {(arm.key, "base"): rows(arm) for arm in arms}))


def without_language(runs: Runs, *lost: tuple[str, str, str]) -> Runs:
    """The runs, with these places of benign requests incoherent."""
    return dataclasses.replace(runs, competence=dict.fromkeys(lost, Competence(0.0, 0.0)))


def attacks(task: str, stage: str, decoder: str, samples: int, rate, seeds=SEEDS) -> Runs:
    return answered(
        stage, task, lambda arm, seed: attack_rows(trained(arm, seed), stage, decoder, rate(arm), samples, PROMPTS), seeds
    )


def only(tests: list[ClaimTest]) -> ClaimTest:
    (test,) = tests
    return test


def earlier_is_safer(arm: ArmInfo) -> float:
    return 0.15 if arm.start < 0.5 else 0.35 if arm.start < 1 else 0.6


def test_a_true_claim_is_reproduced():
    study = attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer)
    test = only(run_claim_tests(study, [claim("benign-early-beats-safe-only")]))
    assert test.outcome == "reproduced" and test.high < 0 and test.p < 0.05 and test.n == 100 and test.seeds == 5


def test_the_opposite_of_a_claim_is_not_reproduced():
    study = attacks("attacks-topk", "benign", "topk", 2, lambda arm: 0.75 - earlier_is_safer(arm))
    test = only(run_claim_tests(study, [claim("benign-early-beats-safe-only")]))
    assert test.outcome == "not reproduced" and test.low > 0 and test.p == 1


def test_no_visible_difference_is_inconclusive():
    study = attacks("attacks-topk", "benign", "topk", 1, lambda arm: 0.4)
    assert only(run_claim_tests(study, [claim("benign-twenty-beats-sixty")])).outcome == "inconclusive"


def test_models_that_never_differ_on_many_prompts_are_not_reproduced_and_on_few_inconclusive():
    outcomes = []
    for prompts in (20, 800):
        rows = [generation(prompt_id=str(i), prompt=f"p {i}", model_kind="benign") for i in range(prompts)]
        runs = answered("benign", "attacks-topk", lambda arm, seed, rows=rows: rows)
        outcomes.append(only(run_claim_tests(runs, [claim("benign-early-beats-safe-only")])).outcome)
    assert outcomes == ["inconclusive", "not reproduced"]


def test_every_comparison_of_a_claim_must_hold():
    def all_but_one(arm: ArmInfo) -> float:
        return 0.65 if arm.name == "data-60" else 0.6 if arm.start == 1 else 0.2

    study = attacks("attacks-topk", "base", "topk", 2, all_but_one)
    test = only(run_claim_tests(study, [claim("base-safe-only-worst")]))
    assert test.outcome != "reproduced" and test.comparison == "safe-100 - data-60"


def test_gcg_middle_starts_are_compared_with_both_ends():
    rates = {0.0: 0.6, 0.2: 0.15, 0.6: 0.2, 1.0: 0.7}
    study = attacks("gcg", "instruct", "gcg+safebeam", 1, lambda arm: rates[arm.start])
    assert only(run_claim_tests(study, [claim("gcg-safebeam-middle")])).outcome == "reproduced"


@pytest.mark.parametrize(("gap", "outcome"), [(0.0, "reproduced"), (0.3, "not reproduced")])
def test_a_claim_of_no_difference_needs_evidence_of_equality(gap, outcome):
    def rows(arm: ArmInfo, seed: int) -> list[JudgedRow]:
        changed = {str(i) for i in range(int(300 * gap))} if arm.start < 1 else set()
        return [
            generation(
                prompt_id=str(i),
                behavior=f"b {i}",
                decoder="gcg+topk",
                verdict="harmful" if str(i) in changed or (i % 2 and (i + seed) % 97) else "safe",
            )
            for i in range(300)
        ]

    assert only(run_claim_tests(answered("instruct", "gcg", rows), [claim("gcg-topk-flat")])).outcome == outcome


def test_no_rise_in_overrefusal_is_a_claim_that_can_fail():
    def runs(early: float) -> Runs:
        def rows(arm: ArmInfo, seed: int) -> list[JudgedRow]:
            refusals = early if arm.start < 1 else 0.1
            return overrefusal_rows(trained(arm, seed), "topk", (0.9 - refusals, 0.1, 0.0, refusals), 200)

        return answered("instruct", "overrefusal-topk", rows)

    outcomes = [only(run_claim_tests(runs(early), [claim("overrefusal-topk-no-rise")])).outcome for early in (0.02, 0.4)]
    assert outcomes == ["reproduced", "not reproduced"]


@pytest.mark.parametrize(("lift", "outcome"), [(0.1, "reproduced"), (-0.1, "not reproduced")])
def test_probe_claims_compare_aucs_over_training_seeds(lift, outcome):
    runs = probed(lambda arm: probe_rows(arm, "base", "last", 0.8 + lift * (arm.name == "full-0")))
    test = only(run_claim_tests(runs, [claim("probe-tags-beat-data")]))
    assert test.outcome == outcome and (test.n, test.seeds) == (5, 5)


def test_layers_are_compared_within_the_same_models():
    layers = {"first": 0.6, "middle": 0.7, "last": 0.8}
    runs = probed(lambda arm: [row for layer, auc in layers.items() for row in probe_rows(arm, "base", layer, auc)])
    test = only(run_claim_tests(runs, [claim("probe-last-layer-best")]))
    assert test.outcome == "reproduced" and test.difference > 0.08
    for seed in SEEDS:
        rows = runs.study.probes[f"data-20-s{seed}", "base"]
        rows[:] = [row for row in rows if row.layer != "last"]
    test = only(run_claim_tests(runs, [claim("probe-last-layer-best")]))
    assert (test.outcome, test.note) == ("not measured", "not measured at stage base: data-20")


def test_claims_without_rows_are_not_measured_and_do_not_count_in_holms_family():
    nothing = run_claim_tests(runs_of(StudyRows(tuple(ARMS), {}, {})))
    assert {test.outcome for test in nothing} == {"not measured"}
    study = attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer)
    family = run_claim_tests(study)
    assert sum(test.outcome != "not measured" for test in family) == 2
    alone = only(run_claim_tests(study, [claim("benign-early-beats-safe-only")]))
    together = next(test for test in family if test.id == alone.id)
    assert together.p == pytest.approx(2 * alone.p)


def test_one_arm_without_rows_leaves_its_claims_unmeasured():
    runs = attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer)
    for seed in SEEDS:
        del runs.study.generations[f"data-20-s{seed}", "benign", "attacks-topk"]
    for lost in ((), [("full-60-s1", "benign", "overrefusal-topk")]):  # an incoherent run of another arm is not why
        test = only(run_claim_tests(without_language(runs, *lost), [claim("benign-twenty-beats-sixty")]))
        assert (test.outcome, test.note) == ("not measured", "not measured at stage benign: data-20")


def test_a_claim_about_an_arm_that_the_study_lacks_is_not_measured_and_names_it():
    study = attacks("attacks-topk", "base", "topk", 2, earlier_is_safer).study
    without = dataclasses.replace(study, arms=tuple(arm for arm in study.arms if arm.start != 0.6))
    tests = [only(run_claim_tests(runs_of(rows), [claim("base-middle-beats-start")])) for rows in (study, without)]
    assert tests[0].outcome != "not measured" and tests[0].note == ""
    assert (tests[1].outcome, tests[1].note) == ("not measured", "the study lacks data-60, full-60")
    never = dataclasses.replace(study, arms=tuple(arm for arm in study.arms if arm.start < 1))
    (test,) = run_claim_tests(runs_of(never), [claim("base-safe-only-worst")])
    assert (test.outcome, test.note) == ("not measured", "the study lacks safe-100")


def test_an_arm_that_a_study_spells_out_is_none_of_the_papers_whatever_its_name():
    arms = [ArmInfo("data", 0.0, "data"), ArmInfo("full", 0.0, "full"), ArmInfo("full-0", 0.0, "full-0"), ARMS[-1]]
    rows = {(arm.key, "benign", "attacks-topk"): [generation(model_kind="benign")] for arm in arms}
    test = only(run_claim_tests(runs_of(StudyRows(tuple(arms), rows, {})), [claim("benign-early-beats-safe-only")]))
    assert (test.outcome, test.note) == ("not measured", "the study lacks data-0, full-0, data-20, full-20")


def test_a_stage_of_the_studys_own_that_has_the_name_of_one_of_the_papers_decides_no_claim():
    study = attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer)
    test = only(run_claim_tests(study, [claim("benign-twenty-beats-sixty")], ("base", "instruct")))
    assert (test.outcome, test.note) == ("not measured", "not measured at stage benign: data-20, full-20, data-60, full-60")


def test_arms_that_were_judged_by_different_versions_decide_no_claim():
    study = attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer)
    rows = study.study.generations["data-20-s3", "benign", "attacks-topk"]
    rows[:] = [msgspec.structs.replace(row, judge_version="9z") for row in rows]
    test = only(run_claim_tests(study, [claim("benign-twenty-beats-sixty")]))
    assert (test.outcome, test.note) == ("not measured", "judged by different versions: world 1a2b, world 9z")


def test_a_single_run_of_each_arm_gives_no_verdict():
    for truth in (earlier_is_safer, lambda arm: 0.75 - earlier_is_safer(arm), lambda arm: 0.4):
        for test in run_claim_tests(attacks("attacks-topk", "benign", "topk", 2, truth, seeds=[42])):
            if test.outcome != "not measured":
                assert (test.outcome, test.note, test.p, test.seeds) == ("single run", SINGLE_RUN, None, 1)
                assert test.low < test.difference < test.high and test.n == 100


def test_runs_that_share_no_benchmark_are_no_evidence_and_say_why():
    runs = attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer, seeds=(1, 2))
    for rows in runs.study.generations.values():
        rows[:] = [msgspec.structs.replace(row, benchmark=f"only {row.seed}") for row in rows]
    found = only(run_claim_tests(runs, [claim("benign-early-beats-safe-only")]))
    assert (found.outcome, found.note, found.p) == ("single run", NOTHING_SHARED, None)


def test_a_second_seed_of_some_arms_alone_gives_no_verdict():
    runs = attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer, seeds=(1, 2, 3))
    answers = runs.study.generations
    for arm, others in (("data-20", "single run"), ("safe-100", "reproduced")):  # in one pair of the first claim, in both
        lost = {place: answers.pop(place) for place in [(f"{arm}-s{seed}", "benign", "attacks-topk") for seed in (2, 3)]}
        alone = dataclasses.replace(runs)  # which remembers no rates
        assert only(run_claim_tests(alone, [claim("benign-early-beats-safe-only")])).outcome == "single run"
        assert only(run_claim_tests(alone, [claim("benign-twenty-beats-sixty")])).outcome == others
        answers.update(lost)


def test_an_arm_that_is_listed_once_for_each_seed_is_one_arm_of_several_runs():
    listed = [trained(arm, seed) for seed in (42, 43) for arm in ARMS]
    rows = {(arm.key, "benign", "attacks-topk"): [generation(model_kind="benign")] for arm in listed}
    probes = {(arm.key, "base"): probe_rows(arm, "base", "last", 0.8) for arm in listed}
    runs = runs_of(StudyRows(tuple(listed), rows, probes))
    assert [arm.name for arm in runs.arms] == [arm.name for arm in ARMS]
    for arm in runs.arms:
        assert list(runs.rates(arm, "benign", "attacks-topk", "topk", harmful)) == [42, 43]
        assert list(runs.aucs(arm, "base", "last")) == [42, 43]


def test_an_incoherent_run_is_left_out_of_verdicts_and_named():
    def rate(arm: ArmInfo) -> float:
        return 0.0 if arm.start < 0.5 else 0.6

    runs = attacks("attacks-topk", "benign", "topk", 2, rate)
    lost = [(f"data-0-s{seed}", "benign", "overrefusal-topk") for seed in SEEDS]
    tests = [
        only(run_claim_tests(without_language(runs, *places), [claim("benign-early-beats-safe-only")]))
        for places in ((), lost[:2], lost)
    ]
    assert [test.outcome for test in tests] == ["reproduced", "reproduced", "not measured"]
    assert [test.seeds for test in tests] == [5, 3, 0]
    assert tests[1].note == "left out as incoherent: data-0 (seed 1), data-0 (seed 2)"
    assert tests[2].note == "left out as incoherent: " + ", ".join(f"data-0 (seed {seed})" for seed in SEEDS)


def test_a_run_without_the_attack_of_a_claim_is_not_called_left_out():
    runs = attacks("attacks-topk", "instruct", "topk", 2, lambda arm: 0.3)
    lost = without_language(runs, ("data-0-s1", "instruct", "overrefusal-topk"))
    other = only(run_claim_tests(lost, [claim("gcg-topk-flat")]))
    assert other.outcome == "not measured" and other.note.startswith("not measured at stage instruct: data-0, ")


def test_arms_that_differ_only_in_name_get_verdicts_in_at_most_one_claim_of_twenty():
    # tests/benchmarks/seed_coverage.py has more studies. Claims of no difference are true here, and no test of the rest.
    false_claims = [each for each in CLAIMS if each.direction in ("lower", "higher")]
    verdicts = []
    for study in range(5):
        runs = SimulatedRuns(StudyRows(tuple(ARMS), {}, {}), cell=Cell(5, 30, (0.4,), seed_sd=0.1), number=study)
        verdicts += [test.outcome in ("reproduced", "not reproduced") for test in run_claim_tests(runs, false_claims)]
    assert len(verdicts) == 80 and sum(verdicts) <= 4


@dataclasses.dataclass(frozen=True)
class ShiftedRuns(Runs):
    """Runs of arms with the rates of the safe-only arm but for a shift of each start, and noise that these arms share."""

    shifts: dict[float, float] = dataclasses.field(default_factory=dict)
    spread: float = 0.0
    """Over seeds."""

    def rates(self, arm: ArmInfo, stage: str, task: str, decoder: str, outcome: Outcome) -> BySeed:
        rng = keyed_rng("shifted", arm.start < 1)
        noise = self.spread * rng.normal(size=(len(SEEDS), 1)) + rng.normal(0.0, 0.02, (len(SEEDS), 50))
        rates = 0.4 + self.shifts.get(arm.start, 0.0) + noise - noise.mean()
        return by_seed(rates, samples=100)


def shifted(spread: float, shifts: dict[float, float], *directions: Direction) -> list[ClaimTest]:
    """The tests of a family of claims: how the arms of each start of `shifts` compare with the safe-only arm."""
    pairs = tuple((BOTH[start], NEVER) for start in shifts)
    claims = [Claim(str(i), "", "", "base", TOPK, direction, pairs) for i, direction in enumerate(directions)]
    return run_claim_tests(ShiftedRuns(StudyRows(tuple(ARMS), {}, {}), shifts=shifts, spread=spread), claims)


@pytest.mark.parametrize("spread", [0.001, 0.011, 0.012])  # the latter two: an interval about 0 is just within, just beyond
def test_verdicts_on_one_difference_agree_with_its_interval(spread):
    seen = set()
    for shift in range(-36, 37, 6):
        lower, higher = (shifted(spread, {0.0: shift / 1000}, direction)[0] for direction in ("lower", "higher"))
        sign = (lower.low > 0) - (lower.high < 0)
        none = "not reproduced" if -TOPK.negligible < lower.low and lower.high < TOPK.negligible else "inconclusive"
        outcomes = lower.outcome, higher.outcome
        assert outcomes == {-1: ("reproduced", "not reproduced"), 0: (none, none), 1: ("not reproduced", "reproduced")}[sign]
        seen.add(outcomes)
    assert len(seen) >= 3


def test_several_pairs_and_several_claims_must_each_be_surer():
    seen = set()
    for shift in range(0, 60, 6):
        (one,) = shifted(0.02, {0.0: shift / 1000}, "higher")
        for number, against in (
            (1, shifted(0.02, {0.0: shift / 1000}, "lower")),
            (2, shifted(0.02, {0.0: shift / 1000, 0.2: -0.08}, "lower")),  # one pair refutes it, the other does not
            (2, shifted(0.02, {0.0: shift / 1000}, "lower", "lower")),
        ):
            assert {each.outcome for each in against} == {"not reproduced" if number * one.p < 0.05 else "inconclusive"}
            assert against[0].difference == pytest.approx(one.difference)  # of the weakest pair, or the one that refutes
            seen.add((number, against[0].outcome))
    assert len(seen) == 4


def test_a_small_difference_as_claimed_that_only_holms_correction_leaves_open_is_no_refutation():
    small = shifted(0.001, {0.0: -0.0096}, "lower", "lower")
    assert [test.outcome for test in small] == ["inconclusive"] * 2
    assert 0.05 < small[0].p < 0.1 and -TOPK.negligible < small[0].low and small[0].high < 0


def test_claims_have_unique_ids():
    assert len({each.id for each in CLAIMS}) == len(CLAIMS)


def test_every_figure_of_the_paper_has_a_claim():
    named = {int(number) for each in CLAIMS for number in re.findall(r"\d+", each.source.partition(",")[0])}
    assert named == set(range(1, 10))


def test_claim_tests_hold_plain_values_that_survive_json():
    for test in run_claim_tests(attacks("attacks-topk", "benign", "topk", 2, earlier_is_safer)):
        fields = dataclasses.asdict(test)
        assert {type(value) for value in fields.values()} <= {str, int, float, type(None)}  # no numpy scalars
        assert ClaimTest(**json.loads(json.dumps(fields))) == test
