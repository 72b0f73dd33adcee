"""The first screen of the page in words: the verdict on the paper's claims, and what it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from curricula.eval.analysis.claim_tests import LEFT_OUT, SINGLE_RUN, ClaimTest
from curricula.eval.analysis.metrics import AttackMetrics, OverrefusalMetrics, StudyMetrics
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.report.wording import judge_names, span


def verdict(tests: Sequence[ClaimTest]) -> str:
    """One sentence: how many claims are reproduced, contradicted and undecided, over how many training seeds."""
    counts = Counter(test.outcome for test in tests)
    measured = len(tests) - counts["not measured"]
    if not measured:
        return f"None of the {len(tests)} claims of Sam et al. has been measured yet."
    if counts["single run"] == measured:
        single = SINGLE_RUN[0].upper() + SINGLE_RUN[1:].replace("'", "’")
        return f"{single}, so none of the {len(tests)} claims of Sam et al. gets a verdict."
    undecided = counts["inconclusive"] + counts["single run"]
    trained = span([test.seeds for test in tests if test.seeds > 1])
    left_out = "; incoherent runs left out" if any(LEFT_OUT in test.note for test in tests) else ""
    sentence = (
        f"Of the {len(tests)} claims of Sam et al., {counts['reproduced']} {_are(counts['reproduced'])} reproduced, "
        f"{counts['not reproduced']} {_are(counts['not reproduced'])} contradicted and {undecided} {_are(undecided)} undecided "
        f"({trained} training seeds each{left_out})"
    )
    missing = counts["not measured"]
    return sentence + (f"; {missing} {_are(missing)} not measured." if missing else ".")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def basis(
    seeds: Sequence[int], arms: Sequence[ArmInfo], metrics: StudyMetrics, model: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What the verdict rests on, as (label, value) pairs. `model`: as the plan describes it."""
    entries: list[AttackMetrics | OverrefusalMetrics] = [*metrics.attacks, *metrics.overrefusals]
    trained = f"{len(seeds)} ({', '.join(map(str, seeds))})" if len(seeds) > 1 else "one run of each arm"
    found = [("Training seeds", f"{trained}, {len(arms)} arm{'s' if len(arms) != 1 else ''}")]
    if prompts := [entry.prompts for entry in entries if entry.rows]:
        found.append(("Prompts", f"{span(prompts)} for each model and decoder"))
    if "parameters" in model:
        found.insert(0, ("Models", f"{model['parameters']:,} parameters each"))
    return [*found, ("Judge", judge_names(entries) or "none yet")]
