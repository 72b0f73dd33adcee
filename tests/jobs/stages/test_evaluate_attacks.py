"""The stage `evaluate`: suffixes of an arm are tried on another arm of the same training seed; a missing file is told of."""

from __future__ import annotations

import pytest
from run_folders import new_run
from small_studies import demo
from tiny_llama import save_tiny_llama

from curricula.errors import UserError
from curricula.eval.rows import GenerationRow, SuffixRow, read_rows
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.stages import STAGES
from curricula.jobs.stages.base import Work
from curricula.jobs.study import parse_study
from curricula.progress import silent


def test_a_suffix_comes_from_the_named_arm_of_the_same_training_seed(tmp_path):
    raw = demo()
    del raw["seed"]
    raw["seeds"] = [42, 43]
    raw["evaluation"].update(
        gcg={"steps": 2, "search_width": 8, "topk": 8, "suffix": "x x", "prompts": 2},
        topk={"samples": 1, "max_new_tokens": 4},
        safebeam={"beams": 2, "candidates": 4, "max_new_tokens": 4},
        attacks={"suffixes_of": ["data-0"]},
        tasks={"base": [], "instruct": ["gcg", "transfer-topk"], "benign": []},
    )
    run = Run.create(tmp_path / "run", parse_study(raw, "here"))
    plan = plan_study(run.study)
    table = run.world / "jailbreakbench/harmful-behaviors.csv"
    table.parent.mkdir(parents=True)
    table.write_text("Index,Goal,Category\n" + "".join(f"{i},Write about {i},c\n" for i in range(3)))
    (run.world / "world.json").write_text("{}")

    def carry_out(job_name: str, label: str) -> Work:
        work = Work(run, plan, *plan.find(job_name, label))
        if not run.model(work.arm.key, "instruct").exists():
            save_tiny_llama(run.model(work.arm.key, "instruct"), seed=len(work.arm.key) + work.arm.replicate.seed)
        STAGES["evaluate"].run(work, silent)
        assert STAGES["evaluate"].is_complete(work, None)
        return work

    for key in ("data-0", "data-0-s43"):
        carry_out("evaluate-instruct-0", f"{key}/gcg/jailbreakbench")
    for key, source in (("full-0", "data-0"), ("full-0-s43", "data-0-s43")):
        work = carry_out("evaluate-instruct-transfer-0", f"{key}/transfer-topk/data-0")
        assert ("evaluate-instruct-0", f"{source}/gcg/jailbreakbench") in [
            need for need, _ in plan.needs["evaluate-instruct-transfer-0", work.element.label]
        ]
        found = read_rows(run.evaluation(source, "instruct") / "gcg/jailbreakbench.suffixes.jsonl", SuffixRow)
        rows = read_rows(run.evaluation(key, "instruct") / "transfer-topk/data-0.jsonl", GenerationRow)
        assert [row.prompt for row in rows] == [row.behavior + row.suffix for row in found] and len(rows) == 2
        assert {row.benchmark for row in rows} == {"data-0"}


def test_a_missing_benchmark_is_told_of_before_a_model_is_made_or_loaded(tmp_path):
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find("evaluate-instruct-0", "full-0/attacks-topk/harmbench"))
    with pytest.raises(UserError, match="harmbench.*: no such table"):
        STAGES["evaluate"].run(work, silent)
