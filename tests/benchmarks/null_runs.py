"""Real studies of arms that differ in nothing but name: how many of them get a verdict?

    python tests/benchmarks/null_runs.py
    python tests/benchmarks/null_runs.py --runs 4 --run runs/null --json null.json    # goes on where it was stopped

Trains the demo's model with five seeds for each study, in one run folder. The arms' "interventions" are more documents of the
safe web, under another name and in another order: whatever differs between their models is chance. Then the paper's claims are
tested on each study by itself, as the report does. At most 5% of studies may have a verdict.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import yaml

from curricula.eval.analysis.claims import CLAIMS, ClaimTest, Group, run_claim_tests
from curricula.eval.analysis.runs import runs_of
from curricula.eval.analysis.study_rows import read_study_rows
from curricula.jobs.run import Run, arm_infos

SEEDS = 5
STAGES = "prepare,tokenize,pretrain,export,evaluate,merge"
FALSE_HERE = [
    replace(claim, pairs=((Group((0.2,), ("data",)), Group((0.0,), ("data",))),))
    for claim in CLAIMS
    if claim.id == "base-middle-beats-start"
]
"""A claim that is false of equal arms, on the arms that these studies have."""


def null_study(runs: int, tokens: int) -> dict[str, Any]:
    """The demo with one set of "interventions" that are none, and seeds for `runs` studies."""
    raw = yaml.safe_load((machine.ROOT / "jobs" / "studies" / "demo.yaml").read_text())
    raw["name"], raw["seeds"] = "null", list(range(1, SEEDS * runs + 1))
    web = raw["sources"]["web"]
    raw["sources"] = {"web": web, "web-again": dict(web)}
    raw["curriculum"].update(safe={"web": 100}, interventions={"data": {"web-again": 100}})
    del raw["tuning"]["instruct"]["tagged_harmful"]  # of a set of interventions that this study lacks
    raw["pretraining"].update(budget_tokens=tokens, save_interval_steps=1000)
    raw["evaluation"]["tasks"] = {"base": ["attacks-topk"], "instruct": [], "benign": []}
    return raw


def tested(run: Run) -> Iterator[list[ClaimTest]]:
    """The claims about arms on each study's five seeds, as if there were no others."""
    arms = arm_infos(run.study)
    for first in range(1, max(arm.seed for arm in arms) + 1, SEEDS):
        own = [arm for arm in arms if first <= arm.seed < first + SEEDS]
        yield [test for test in run_claim_tests(runs_of(read_study_rows(run.root, own)), FALSE_HERE) if test.n]


def main() -> None:
    options = machine.parser(__doc__)
    options.add_argument("--runs", type=int, default=20, help="studies of five seeds each")
    options.add_argument("--tokens", type=int, default=32_000, help="of one arm's pretraining")
    options.add_argument("--run", type=Path, default=Path("runs/null"), help="the run folder, which is kept")
    args = options.parse_args()
    args.run.parent.mkdir(parents=True, exist_ok=True)
    study = args.run.with_suffix(".yaml")
    study.write_text(yaml.safe_dump(null_study(args.runs, args.tokens), sort_keys=False))
    command = [sys.executable, "-m", "curricula.jobs.cli.main", "submit", str(study), "--run", str(args.run)]
    subprocess.run([*command, "--stage", STAGES, "--yes"], check=True)
    found = list(tested(Run(args.run)))
    table = machine.table(f"{args.runs} studies of equal arms, {SEEDS} seeds each", "claim", "tested", "p < 0.05", "verdicts")
    for claim in FALSE_HERE:
        tests = [test for study in found for test in study if test.id == claim.id]
        if tests:
            verdicts = sum(test.outcome in ("reproduced", "not reproduced") for test in tests)
            table.add_row(claim.id, str(len(tests)), str(sum((test.p or 1) < 0.05 for test in tests)), str(verdicts))
    machine.report(args, [table], [], [vars(test) for study in found for test in study])


if __name__ == "__main__":
    main()
