"""How the report words things: what a study was, captions, sample answers, numbers and untrusted text.

Knows cells and rows; the numbers come from `eval/analysis/metrics.py`, the page is put together in `eval/report/page.py`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curricula.eval.analysis.claim_tests import StudyRows
from curricula.eval.analysis.claims import AUC
from curricula.eval.analysis.metrics import ALL, AttackCell, Cells, OverrefusalCell
from curricula.eval.report.figures import STAGES, Figure
from curricula.eval.report.panels import arm_label
from curricula.eval.rows import JudgedRow
from curricula.eval.tasks import decoder_titles
from curricula.randomness import key_seed

DECODERS = decoder_titles()
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")  # categories of characters that show nothing of their own


def facts(plan: Mapping[str, Any], cells: Cells) -> list[tuple[str, str]]:
    """What the study was, as (label, value) pairs; only what is known."""
    model, budget = plan.get("model") or {}, plan.get("budget") or {}
    found = []
    if model:
        size = f", {model['parameters']:,} parameters" if "parameters" in model else ""
        found.append(("Model", f"{model.get('preset', '')}{size}"))
    if budget:
        detail = f"{budget['steps']:,} steps of {budget['global_batch']:,} × {budget['sequence_length']:,} tokens"
        found.append(("Pretraining of each arm", f"{budget['tokens']:,} tokens, {detail}"))
    if "trained_tokens" in plan:
        found.append(
            ("Tokens trained in all", f"{plan['trained_tokens']['with_trunk_sharing']:,}, with a shared trunk")
        )
    if judges := judges_of(cells.attacks, cells.overrefusals):
        found.append(("Judges", judges))
    return found


def described(figure: Figure, cells: Cells) -> str:
    """The part of a caption that depends on this study: what bands are, how many prompts, which judge."""
    if figure.kind == "probes":
        of = [cell for cell in cells.probes if cell.layer == figure.detail]
        sizes = f" {of[0].n_train:,} training and {of[0].n_test:,} test texts, {of[0].seeds} seeds." if of else ""
        return f"Line: mean test AUC. Band: standard deviation over training subsets, not over pretrainings.{sizes}"
    if figure.kind == "overrefusal":
        shown = [c for c in cells.overrefusals if (c.stage, c.decoder) == (figure.stage, figure.detail)]
        blind = any(cell.judges.startswith("refusal-phrases") for cell in shown)
        limits = " Phrases cannot tell helpful from unhelpful, nor partial from full refusals." if blind else ""
        parts = "Shares of parsed answers; partial and full refusals and shortcircuits are over-refusal."
        return parts + limits + counted(shown)
    decoders = (figure.detail + "topk", figure.detail + "safebeam")
    attacks = [c for c in cells.attacks if c.stage == figure.stage and c.decoder in decoders]
    several = any(cell.benchmark == ALL for cell in attacks)
    average = " Strong lines: mean of the benchmarks; faint lines: each benchmark." if several else ""
    main = [cell for cell in attacks if not several or cell.benchmark == ALL]
    return (
        "Top-k band: standard deviation over sampling seeds, as in the paper. Whiskers, both panels: 95% interval over"
        f" prompts.{average}{counted(main)}"
    )


def counted(cells: Sequence[AttackCell] | Sequence[OverrefusalCell]) -> str:
    """ " 120 prompts, judge world 1a2b." for the cells of one figure."""
    if not cells:
        return ""
    prompts = sorted({cell.prompts for cell in cells})
    number = f"{prompts[0]:,}" if len(prompts) == 1 else f"{prompts[0]:,} to {prompts[-1]:,}"
    return f" {number} prompts a model. Judge: {judges_of(cells)}."


def judges_of(*groups: Sequence[AttackCell] | Sequence[OverrefusalCell]) -> str:
    """Every judge of the cells, with its version."""
    names = {name for cells in groups for cell in cells for name in cell.judges.split(", ")}
    return ", ".join(sorted(names - {""}))


def samples(study: StudyRows) -> Iterator[tuple[str, JudgedRow, list[tuple[str, str, JudgedRow]]]]:
    """Per stage one request, picked by hash and not by hand, and what every arm answered: (arm, decoder, row)."""
    for stage in STAGES:
        answers = [
            (arm_label(arm), DECODERS[row.decoder], row)
            for arm in study.arms
            for task in ("attacks-topk", "attacks-safebeam")
            for row in study.generations.get((arm.name, stage, task), [])
            if row.sample == 0
        ]
        if answers:
            shown = min((key_seed("shown", row.benchmark, row.prompt_id), row.prompt_id) for _, _, row in answers)
            chosen = [
                (arm, decoder, row)
                for arm, decoder, row in answers
                if (key_seed("shown", row.benchmark, row.prompt_id), row.prompt_id) == shown
            ]
            yield stage, chosen[0][2], chosen


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) pairs of nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flattened(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else value


def visible(text: Any, limit: int | None = None) -> str:
    """`text` with characters that have no glyph of their own (controls, direction marks, lone surrogates) spelt out."""
    text = str(text)
    kept = text if limit is None or len(text) <= limit else text[:limit] + " […]"
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in HIDDEN else f"⟨U+{ord(char):04X}⟩" for char in kept
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f}%"


def points(value: float | None, measure: str) -> str:
    """A difference: percentage points, or AUC as it is."""
    if value is None:
        return "–"
    text = f"{value:+.3f}" if measure == AUC.name else f"{value * 100:+.1f}"
    return text.replace("-", "\N{MINUS SIGN}")


def p_value(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def number(value: float | int | None) -> str:
    """A count with thousands apart, or a loss with four decimals."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
