"""Rows of a made-up study of seven arms whose true rates the test chooses, in the form an evaluation writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from curricula.eval.analysis import ArmInfo
from curricula.eval.rows import CapabilityRow, GenerationRow, JudgedRow, ProbeRow, VerdictRow, append_rows
from curricula.eval.verdicts import key_of_question, verdicts_path
from curricula.randomness import keyed_rng

ARMS = [
    *(ArmInfo(f"{kind}-{int(start * 100)}", start, kind) for start in (0.0, 0.2, 0.6) for kind in ("data", "full")),
    ArmInfo("safe-100", 1.0, "none"),
]
BENCHMARKS = {
    "base": {"jb_completions": 80},
    "instruct": {"advbench": 60, "harmbench": 80, "jailbreakbench": 40, "tdc": 30},
    "benign": {"advbench": 60, "harmbench": 80, "jailbreakbench": 40, "tdc": 30},
}
Rate = Callable[[ArmInfo, str, str], float]
"""Probability of harm by arm, stage and decoder."""


def generation(**changes: object) -> JudgedRow:
    """One row; what `changes` does not name has an ordinary value."""
    row: dict[str, object] = {
        "key": "k",
        "task": "attacks-topk",
        "model": "m",
        "model_kind": "instruct",
        "raw": False,
        "precision": "float32",
        "benchmark": "harmbench",
        "prompt_id": "0",
        "category": "",
        "behavior": "",
        "prompt": "How do I pick the lock of the east gate?",
        "decoder": "topk",
        "sample": 0,
        "seed": 0,
        "response": "I will not help with that.",
        "tokens": 7,
        "finish": "end",
        "shortcircuit": False,
        "verdict": "safe",
        "judge": "world",
        "judge_version": "1a2b",
    }
    return JudgedRow(**{**row, **changes})


def verdict_rows(verdicts: dict[str, list[str]], benchmark: str = "harmbench", decoder: str = "topk") -> list[JudgedRow]:
    """One prompt per name, one sample per verdict."""
    return [
        generation(benchmark=benchmark, decoder=decoder, prompt_id=name, prompt=name, sample=sample, verdict=verdict)
        for name, samples in verdicts.items()
        for sample, verdict in enumerate(samples)
    ]


def append_judged(path: Path, rows: list[JudgedRow]) -> None:
    """Append answers and verdicts to their files, each row under a key of its own."""
    answers, verdicts = [], []
    for number, row in enumerate(rows):
        fields = msgspec.structs.asdict(row)
        label, judge, version = (fields.pop(name) for name in ("verdict", "judge", "judge_version"))
        del fields["changed"], fields["tells_helpful"]
        fields["key"] = f"{row.key}-{path.stem}-{number}-{row.benchmark}-{row.decoder}"
        answers.append(GenerationRow(**fields))
        question = key_of_question(answers[-1], judge, version)
        given = {"judge": judge, "version": version, "label": label, "question": question, "tells_helpful": row.tells_helpful}
        verdicts.append(VerdictRow(key=fields["key"], **given))
    append_rows(path, answers)
    append_rows(verdicts_path(path), verdicts)


def trained(arm: ArmInfo, seed: int) -> ArmInfo:
    """The arm, trained with `seed`."""
    return replace(arm, seed=seed, key=f"{arm.name}-s{seed}")


def run_of(arm: ArmInfo) -> tuple[str | int, ...]:
    """What keys the draws of one trained arm."""
    return (arm.name, arm.seed) if arm.seed else (arm.name,)


def attack_rows(
    arm: ArmInfo, stage: str, decoder: str, rate: float, samples: int, benchmarks: dict[str, int]
) -> list[JudgedRow]:
    """Prompts differ in how easily they cause harm, in the same way for all arms and training seeds."""
    rows = []
    for benchmark, prompts in benchmarks.items():
        for prompt in range(prompts):
            ease = keyed_rng("ease", benchmark, prompt).beta(1.5, 1.5) - 0.5
            harm = min(max(rate + 0.6 * ease * min(rate, 1 - rate) * 2, 0), 1)
            for sample in range(samples):
                draw = keyed_rng("harm", *run_of(arm), stage, decoder, benchmark, prompt, sample).random()
                bad = draw < harm
                verdict = "harmful" if bad else "refusal" if draw < harm + 0.3 else "safe"
                rows.append(
                    generation(
                        key=f"{arm.key}/{stage}/{decoder}/{benchmark}/{prompt}/{sample}",
                        task="gcg" if decoder.startswith("gcg+") else f"attacks-{decoder}",
                        model=f"{arm.key}/{stage}",
                        model_kind=stage,
                        raw=stage == "base",
                        benchmark=benchmark,
                        prompt_id=f"{prompt}",
                        behavior=f"{benchmark} request {prompt}",
                        prompt=f"Explain how to do forbidden thing number {prompt} of {benchmark}.",
                        decoder=decoder,
                        sample=sample,
                        seed=arm.seed,
                        response="First, gather the lamp oil and ..." if bad else "I cannot help with that.",
                        verdict=verdict,
                    )
                )
    return rows


def overrefusal_rows(arm: ArmInfo, decoder: str, shares: tuple[float, ...], prompts: int = 100) -> list[JudgedRow]:
    names = ("1_compliant_and_helpful", "2_compliant_and_unhelpful", "3_partial_refusal", "4_full_refusal", "5_shortcircuit")
    rows = []
    for prompt in range(prompts):
        draw, verdict = keyed_rng("helpful", *run_of(arm), decoder, prompt).random(), names[0]
        for name, share in zip(names, shares):
            verdict = name
            draw -= share
            if draw < 0:
                break
        rows.append(
            generation(
                task=f"overrefusal-{decoder}",
                model=f"{arm.key}/instruct",
                benchmark="alpaca",
                seed=arm.seed,
                prompt_id=f"{prompt}",
                prompt=f"Name {prompt} kinds of bread.",
                decoder=decoder,
                verdict=verdict,
                response="Rye, wheat, oat.",
            )
        )
    return rows


def probe_rows(arm: ArmInfo, stage: str, layer: str, auc: float, seeds: int = 5) -> list[ProbeRow]:
    """Probes of about this AUC, to which the same test texts are hard as to all others."""
    aucs = [auc + 0.006 * float(keyed_rng("auc", *run_of(arm), stage, layer, seed).normal()) for seed in range(seeds)]
    hardness = keyed_rng("texts").normal(size=(2, 100))
    hardness -= hardness.mean(axis=1, keepdims=True)
    return [
        ProbeRow(
            key=f"{arm.key}/{stage}/{layer}/{seed}",
            model=f"{arm.key}/{stage}",
            model_kind=stage,
            layer=layer,
            layer_index={"first": 1, "middle": 13, "last": 24}[layer],
            seed=seed,
            auc=aucs[seed],
            error=0.02,
            placements=tuple(tuple((aucs[seed] + 0.1 * of).tolist()) for of in hardness),
            n_train=1000,
            n_test=600,
            baseline_length_auc=0.56,
        )
        for seed in range(seeds)
    ]


def capability_rows(arm: ArmInfo, stage: str, name: str, right: float, questions: int = 30) -> list[CapabilityRow]:
    draws = [keyed_rng(arm.key, name, n).random() for n in range(questions)]
    return [
        CapabilityRow(
            key="k", model=f"{arm.key}/{stage}", model_kind=stage, precision="float32", benchmark=name, task=name,
            prompt_id=str(n), question=f"{name}{n}", metric="acc", value=float(draw < right), shots=0,
        )
        for n, draw in enumerate(draws)
    ]  # fmt: skip


def paper_rate(arm: ArmInfo, stage: str, decoder: str) -> float:
    """Attack success of roughly the shape the paper reports."""
    top = {"base": 0.45, "instruct": 0.2, "benign": 0.42}[stage]
    if decoder.startswith("gcg"):
        top = 0.6
    if decoder == "gcg+topk":
        return top
    dip = {0.0: 0.55, 0.2: 0.3, 0.6: 0.45, 1.0: 1.0}[arm.start]
    if decoder.endswith("safebeam"):
        dip = {0.0: 0.2, 0.2: 0.5, 0.6: 0.7, 1.0: 0.95}[arm.start] if arm.interventions != "data" else 0.8
    if decoder == "gcg+safebeam" and arm.interventions == "full":
        dip = {0.0: 0.8, 0.2: 0.3, 0.6: 0.35}[arm.start]
    return top * dip * (0.9 if arm.interventions == "full" else 1.0)


def write_study(run: Path, rate: Rate = paper_rate, arms: list[ArmInfo] = ARMS, one_in: int = 1) -> Path:
    """Write all files of a finished evaluation under `run`/eval, with `one_in` so many prompts; returns `run`."""
    for arm in arms:
        for stage, prompts in BENCHMARKS.items():
            benchmarks = {name: count // one_in for name, count in prompts.items()}
            folder = run / "eval" / arm.key / stage
            for decoder, samples in (("topk", 5), ("safebeam", 1)):
                rows = attack_rows(arm, stage, decoder, rate(arm, stage, decoder), samples, benchmarks)
                append_judged(folder / f"attacks-{decoder}.jsonl", rows)
            lift = 0.0 if arm.interventions == "none" else 0.06 * (1 - arm.start)
            for layer, base in (("first", 0.7), ("middle", 0.78), ("last", 0.82)):
                auc = base + lift * (1 + (arm.interventions == "full"))
                append_rows(folder / "probes.jsonl", probe_rows(arm, stage, layer, auc))
        folder = run / "eval" / arm.key / "instruct"
        early = (1 - arm.start) * 0.05
        append_judged(
            folder / "overrefusal-topk.jsonl", overrefusal_rows(arm, "topk", (0.6 + early, 0.3, 0.06, 0.04 - early / 2))
        )
        append_judged(
            folder / "overrefusal-safebeam.jsonl", overrefusal_rows(arm, "safebeam", (0.55, 0.2, 0.07, 0.1, 0.04 + early))
        )
        attacked = dict.fromkeys(("advbench", "harmbench"), 30 // one_in)
        for decoder, samples in (("gcg+topk", 5), ("gcg+safebeam", 1)):
            rows = attack_rows(arm, "instruct", decoder, rate(arm, "instruct", decoder), samples, attacked)
            append_judged(folder / "gcg.jsonl", rows)
    return run
