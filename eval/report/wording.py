"""Turns names, numbers and untrusted text into the report's words.

The numbers come from `eval/analysis/metrics.py`; the page is assembled in `eval/report/page.py`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from curricula.eval.analysis.claims import AUC, LEFT_OUT, NOTHING_SHARED, SINGLE_RUN, ClaimTest
from curricula.eval.analysis.metrics import ANSWER_CATEGORIES, AttackMetrics, Model, OverrefusalMetrics, StudyMetrics
from curricula.eval.analysis.statistics import grouped
from curricula.eval.analysis.study_rows import ArmInfo
from curricula.eval.judges.caveats import caveats
from curricula.eval.tasks import decoder_titles
from curricula.terminal import fixed, plural

STAGES = {"base": "base models", "instruct": "instruction-tuned models", "benign": "benign-finetuned models"}
DECODERS = decoder_titles()
_CATEGORIES = ("compliant, helpful", "compliant, unhelpful", "partial refusal", "full refusal", "short-circuit")
CATEGORIES = dict(zip(ANSWER_CATEGORIES, _CATEGORIES, strict=True))
NOT_EVALUATED = "not evaluated yet"
NO_INTERVENTIONS = "no interventions"
PAPER_SETS = {"data": "data", "full": "data and tags"}
START_AXIS = "start of interventions, share of pretraining"
CORRECTED = "corrected for the judge"

INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode categories of characters without a glyph of their own."""


def stage_title(stage: str) -> str:
    return STAGES.get(stage, f"models after {stage}")


def arm_label(arm: ArmInfo) -> str:
    if arm.interventions == "none":
        return NO_INTERVENTIONS
    return f"{set_label(arm)}, from {_percent_of(arm.start)}" + (f" to {_percent_of(arm.end)}" if arm.end < 1 else "")


def set_label(arm: ArmInfo) -> str:
    """The intervention set of an arm in words. An arm whose phases the study spells out has its own name."""
    return arm.interventions if arm.is_custom else PAPER_SETS.get(arm.interventions, arm.interventions)


def start_label(start: float) -> str:
    return "never" if start >= 1 else _percent_of(start)


def _percent_of(start: float) -> str:
    """A start in percent, as in the names of arms: rounded to whole percents, two starts could look the same."""
    return f"{100 * start:g}%"


def arm_labels(arms: Sequence[ArmInfo]) -> dict[str, str]:
    """The label of each trained arm by its key, with the seed if there are several."""
    several = len({arm.seed for arm in arms}) > 1
    return {arm.key: arm_label(arm) + (f", seed {arm.seed}" if several else "") for arm in arms}


def verdict(tests: Sequence[ClaimTest]) -> str:
    """One sentence: how many claims are reproduced, contradicted and undecided, over how many training seeds."""
    counts = Counter(test.outcome for test in tests)
    measured = len(tests) - counts["not measured"]
    if not measured:
        return f"None of the {len(tests)} claims of Sam et al. has been measured."
    if counts["single run"] == measured:
        why = SINGLE_RUN if any(test.seeds == 1 for test in tests) else NOTHING_SHARED
        return f"{why.capitalize()}, so none of the {len(tests)} claims of Sam et al. gets a verdict."
    undecided = counts["inconclusive"] + counts["single run"]
    trained = span([test.seeds for test in tests if test.seeds > 1])
    left_out = "; incoherent runs left out" if any(LEFT_OUT in test.note for test in tests) else ""
    missing = f"; {_are(counts['not measured'])} not measured" if counts["not measured"] else ""
    return (
        f"Of the {len(tests)} claims of Sam et al., {_are(counts['reproduced'])} reproduced, "
        f"{_are(counts['not reproduced'])} contradicted and {_are(undecided)} undecided "
        f"({trained} training seeds each{left_out}){missing}."
    )


def _are(count: int) -> str:
    """The count with its verb, such as "2 are"."""
    return f"{count} is" if count == 1 else f"{count} are"


def basis(
    seeds: Sequence[int], arms: Sequence[ArmInfo], metrics: StudyMetrics, plan: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What the verdict rests on, as (label, value) pairs."""
    entries: list[AttackMetrics | OverrefusalMetrics] = [*metrics.attacks, *metrics.overrefusals]
    model, budget, pairs = plan.get("model") or {}, plan.get("budget") or {}, []
    if model:
        pairs.append(("Models", f"{model['name']}, {model['parameters']:,} parameters each"))
    trained = f"{len(seeds)} ({', '.join(map(str, seeds))})" if len(seeds) > 1 else "one run of each arm"
    pairs.append(("Training seeds", f"{trained}, {plural(len(arms), 'arm')}"))
    if budget:
        detail = f"{budget['steps']:,} steps of {budget['global_batch']:,} × {budget['sequence_length']:,} tokens"
        pairs.append(("Pretraining of each arm", f"{budget['tokens']:,} tokens, {detail}"))
    if "trained_tokens" in plan:
        tokens = plan["trained_tokens"]
        later = f"; and {tokens['midtraining']:,} of midtraining" if tokens["midtraining"] else ""
        pairs.append(("Pretraining of all arms", f"{tokens['with_trunk_sharing']:,} tokens, with a shared trunk{later}"))
    answered = [entry for entry in entries if entry.rows]
    by_place = grouped(answered, lambda entry: (type(entry), entry.arm, entry.seed, entry.stage, entry.decoder))
    if prompts := [max(entry.prompts for entry in own) for own in by_place.values()]:  # all benchmarks together have the most
        pairs.append(("Prompts", f"{span(prompts)} for each model and decoder"))
    return [*pairs, ("Judge", judge_names(entries) or "none")]


def prompts_and_judge(shown: Sequence[AttackMetrics | OverrefusalMetrics]) -> str:
    """How many prompts and which judge are behind a figure: "120 prompts per model. Judge: world 1a2b."."""
    kinds = (AttackMetrics, OverrefusalMetrics)
    by_kind = [judge_names([entry for entry in shown if isinstance(entry, kind)]) for kind in kinds]
    prompts = span([metrics.prompts for metrics in shown])
    return f"{prompts} prompts per model. Judge: {judge_names(shown)}. {caveats(*by_kind)}".rstrip()


def over_seeds(points: str, interval: str, entries: Sequence[Model], alone: str) -> list[str]:
    """Sentences on what a figure shows over several training seeds. `alone` says what an arm with a single run has instead."""
    counts = Counter(arm for arm, _ in {(entry.arm, entry.seed) for entry in entries}).values()
    if not counts:
        return []
    if max(counts) == 1:
        return [f"A single run of each arm so far, with {alone}: differences between arms may be due to the seed."]
    seeds = span(list(counts))
    sentences = [f"{points} over {seeds} training seeds. Whiskers: 95% interval {interval}. Small marks: single runs."]
    if min(counts) == 1:
        sentences.append(f"Arms with a single run so far have {alone}.")
    return sentences


def left_out(arms: Sequence[ArmInfo], names: Collection[str], what: str, where: str) -> list[str]:
    """A sentence on the arms in `names`, whose mean is not shown; none if there are no such arms.

    `what` is what a run lacks, such as "a task"; `where` is where the arm is left out, such as "here".
    """
    labels = [f"“{arm_label(arm)}”" for arm in arms if arm.name in names]
    return [f"Left out {where}, because a run lacks {what} that others have: {', '.join(labels)}."] if labels else []


def span(counts: Sequence[int]) -> str:
    """The least and the greatest of `counts`, such as "80 to 210"."""
    least, greatest = min(counts), max(counts)
    return f"{least:,}" if least == greatest else f"{least:,} to {greatest:,}"


def judge_names(shown: Sequence[AttackMetrics | OverrefusalMetrics]) -> str:
    """Every judge behind the metrics, with its version."""
    return ", ".join(sorted({name for metrics in shown for name in metrics.judges.split(", ")} - {""}))


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as ("a.b", value) pairs."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flattened(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else value


def visible(text: Any) -> str:
    """`text` with its invisible characters (controls, direction marks, lone surrogates) spelled out, such as ⟨U+001B⟩."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in INVISIBLE else f"⟨U+{ord(char):04X}⟩" for char in str(text)
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{fixed(value, 1, times=100)}%"


def points(value: float | None, measure: str) -> str:
    """A difference in percentage points, or in AUC as it is."""
    if value is None:
        return "–"
    text = fixed(value, 3, "+") if measure == AUC.name else fixed(value, 1, "+", times=100)
    return text.replace("-", "\N{MINUS SIGN}")


def p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else fixed(value, 3)


def number(value: float | int | None) -> str:
    """A count with thousands separators, or a loss with four decimals."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else fixed(value, 4)


def amount(value: float | None) -> str:
    """Hours or seconds with three significant digits: "1,340", "0.52", "< 0.001"."""
    if value is not None and 0 < value < 0.001:
        return "< 0.001"
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
