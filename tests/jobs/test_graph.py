"""The plan of the paper's study: its jobs, their elements and dependencies."""

from pathlib import Path

import msgspec
import pytest
import yaml
from paths import STUDIES
from small_studies import by_job, demo

from curricula.errors import UsageError
from curricula.jobs.downloads import study_downloads
from curricula.jobs.estimates import describe
from curricula.jobs.graph import plan_study
from curricula.jobs.plan import Element, Job
from curricula.jobs.selection import Selection, select
from curricula.jobs.study import load_study, parse_study


def jobs_by_name():
    return dict(plan_study(load_study(STUDIES / "paper.yaml")).by_name)


def test_every_job_comes_after_what_it_needs():
    seen = set()
    for job in plan_study(load_study(STUDIES / "paper.yaml")).jobs:
        assert {edge.job for edge in job.needs} <= seen, job.name
        seen.add(job.name)


def test_a_job_in_many_arrays_looks_at_each_of_its_elements_once():
    reads = []

    class Watched(Element):
        def __getattribute__(self, name):
            reads.append(name)
            return super().__getattribute__(name)

    job = Job("tokenize", "tokenize", tuple(Watched(str(number)) for number in range(50)))
    arrays = [job.part([label]) for label in job.labels]
    assert reads.count("label") == 50 and arrays[7].elements == job.elements[7:8]


def test_branches_wait_for_the_trunk_to_reach_their_start_and_no_longer():
    jobs = jobs_by_name()
    assert [edge.job for edge in jobs["pretrain-0"].needs] == ["tokenize"]
    assert [edge.job for edge in jobs["pretrain-20"].needs] == ["pretrain-trunk-57220"]
    assert [edge.job for edge in jobs["pretrain-60"].needs] == ["pretrain-trunk-171661"]


def test_each_arm_goes_from_pretraining_to_the_benign_model_element_by_element():
    jobs = jobs_by_name()
    follows = {"export-base-20": "pretrain-20", "instruct-20": "pretrain-20", "benign-20": "instruct-20"}
    for after, before in follows.items():
        (edge,) = [edge for edge in jobs[after].needs if edge.job != "fetch"]
        assert (edge.job, edge.kind) == (before, "aftercorr")
        assert [element.arm for element in jobs[after].elements] == ["data-20", "full-20"]
    assert [element.label for element in jobs["pretrain-20"].elements] == ["data-20", "full-20"]


def test_the_safe_only_arm_is_the_trunk_itself():
    (edge,) = jobs_by_name()["export-base-100"].needs
    assert edge.job == "pretrain-trunk-286102"


def test_a_licence_that_a_benchmark_lacks_holds_back_what_is_measured_alone():
    jobs, wanted = jobs_by_name(), study_downloads(load_study(STUDIES / "paper.yaml"), Path())
    for name, purpose in (("fetch", "data"), ("fetch-benchmarks", "evaluation")):
        assert jobs[name].labels == tuple(item.label for item in wanted if item.purpose == purpose)
    for name, job in jobs.items():
        waits = [edge.job for edge in job.needs if edge.job.startswith("fetch")]
        assert waits == {"prepare": ["fetch"], "tune": ["fetch"], "evaluate": ["fetch-benchmarks"]}.get(job.stage, []), name


def test_the_papers_study_is_fewer_than_forty_job_arrays():
    assert len(jobs_by_name()) < 40


def test_the_report_comes_even_when_an_evaluation_failed():
    assert {edge.kind for edge in jobs_by_name()["report"].needs} == {"afterany"}


def test_the_report_waits_for_models_that_nothing_measures():
    raw = demo()
    raw["evaluation"]["tasks"] = {"base": [], "instruct": ["attacks-topk"], "benign": []}
    raw["tuning"]["instruct"]["arms"] = ["full-20"]
    raw["stages"] = {"chat": {"kind": "sft", "mix": {"gsm8k": 1}, "tasks": []}}
    raw["stages"]["chatty"] = {**raw["stages"]["chat"], "from": "chat", "arms": ["data-20"], "tasks": ["attacks-topk"]}
    plan = plan_study(parse_study(raw, "here"))
    needed = {need for needs in plan.needs.values() for need, _ in needs}
    assert {(job.name, one.label) for job, one in plan.elements()} - needed == {("report", "report")}


def test_labels_are_unique_within_a_job_and_names_within_a_study():
    jobs = plan_study(load_study(STUDIES / "paper.yaml")).jobs
    assert len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        labels = [element.label for element in job.elements]
        assert len(set(labels)) == len(labels)


def test_an_evaluation_is_an_element_for_each_part_and_one_that_merges_each_model():
    jobs = jobs_by_name()
    labels = [element.label for element in jobs["evaluate-instruct-20"].elements]
    assert "full-20/attacks-topk/harmbench" in labels and "full-20/overrefusal-safebeam/alpaca" in labels
    assert [label for label in labels if "full-20/gcg" in label] == [
        f"full-20/gcg/jailbreakbench.{shard}-of-4" for shard in range(4)
    ]
    merge = jobs["merge-20"]
    kinds = ("base", "instruct", "benign")
    assert [element.label for element in merge.elements] == [f"{arm}-20/{kind}" for kind in kinds for arm in ("data", "full")]
    assert [(edge.job, edge.kind) for edge in merge.needs] == [(f"evaluate-{kind}-20", "afterany") for kind in kinds]
    alone = {**demo()["evaluation"], "tasks": {"base": ["attacks-topk"], "instruct": [], "benign": []}}
    (merge,) = [job for job in plan_study(parse_study({**demo(), "evaluation": alone}, "x")).jobs if job.name == "merge-20"]
    assert merge.labels == ("data-20/base", "full-20/base")  # as they are when the study grows by other kinds
    merges = {(name, "afterany") for name, job in jobs.items() if name.startswith("merge")}
    assert {(edge.job, edge.kind) for edge in jobs["report"].needs} == merges


def test_an_arm_that_others_branch_from_is_trained_in_parts_and_only_once(tmp_path):
    """A cooldown on another mix, from the paper's data-0: 90% of it is data-0's own past."""
    raw = yaml.safe_load((STUDIES / "paper.yaml").read_text())
    cooled = [{"until": 0.9, "mix": "data"}, {"until": 1, "mix": "full", "cooldown": True}]
    raw["curriculum"]["arms"] = {"cooled": cooled}
    plan, before = plan_study(parse_study(raw, "study.yaml")), plan_study(load_study(STUDIES / "paper.yaml"))
    names = [job.name for job in plan.jobs]
    assert set(names) - {job.name for job in before.jobs} == {"pretrain-0-257492", "pretrain-90"}
    assert plan.by_name["pretrain-0-257492"].labels == ("data-0",)
    assert plan.by_name["pretrain-0"].labels == ("full-0",) and plan.by_name["pretrain-90"].labels == ("data-0", "cooled")
    assert all(names.index(edge.job) < names.index(job.name) for job in plan.jobs for edge in job.needs)
    for label in ("data-0", "cooled"):
        assert plan.needs["pretrain-90", label] == [(("pretrain-0-257492", "data-0"), True)]
        assert plan.needs["export-base-0", label] == [(("pretrain-90", label), True)]
    assert plan.needs["export-base-0", "full-0"] == [(("pretrain-0", "full-0"), True)]
    assert [edge.kind for edge in plan.by_name["export-base-0"].needs] == ["afterok", "afterok"]
    tokens = [describe(one)["trained_tokens"]["with_trunk_sharing"] for one in (before, plan)]
    assert tokens[1] - tokens[0] == (286_102 - 257_492) * 1024 * 2048
    chosen = select(plan, Selection(arms=("cooled",)), with_needs=True)
    assert by_job(chosen)["pretrain-90"] == ["cooled"] and by_job(chosen)["pretrain-0-257492"] == ["data-0"]


def test_suffixes_are_tried_on_every_arm_once_their_own_arms_have_found_them():
    raw = msgspec.to_builtins(load_study(STUDIES / "paper.yaml"))
    raw["evaluation"]["attacks"]["suffixes_of"] = ["data-0", "full-20"]
    raw["evaluation"]["tasks"]["instruct"] = ["gcg", "attacks-topk", "transfer-topk"]
    plan = plan_study(parse_study(raw, "here"))
    seen = set()
    for job in plan.jobs:
        assert {edge.job for edge in job.needs} <= seen, job.name
        seen.add(job.name)
    job = plan.by_name["evaluate-instruct-transfer-60"]
    assert [element.label for element in job.elements] == [
        f"{arm}-60/transfer-topk/{source}" for arm in ("data", "full") for source in ("data-0", "full-20")
    ]
    kinds = {edge.job: edge.kind for edge in job.needs}
    finders = dict.fromkeys(("evaluate-instruct-0", "evaluate-instruct-20"), "afterany")
    assert kinds == {"instruct-60": "afterok", "fetch-benchmarks": "afterok", **finders}
    needed = [need for need, _ in plan.needs[job.name, "full-60/transfer-topk/data-0"] if need[0].startswith("evaluate")]
    assert needed == [("evaluate-instruct-0", f"data-0/gcg/jailbreakbench.{shard}-of-4") for shard in range(4)]
    assert {edge.job for edge in plan.by_name["merge-60"].needs} == {
        *(f"evaluate-{part}-60" for part in ("base", "instruct", "benign", "instruct-transfer"))
    }
    assert [element.label for element in plan.by_name["merge-60"].elements][2:4] == ["data-60/instruct", "full-60/instruct"]


@pytest.mark.parametrize(
    "arms, tasks, words",
    [
        (["data-7"], ["gcg", "transfer-topk"], "suffixes_of names 'data-7'; choose from data-0, "),
        (["data-0"], ["transfer-topk"], "tasks.instruct names transfer without gcg, which finds the suffixes; add gcg"),
        (["full-0", "data-0"], ["gcg", "transfer-topk"], "suffixes_of names arm data-0, which has no stage instruct to find"),
    ],
)
def test_suffixes_that_no_arm_finds_are_refused(arms, tasks, words):
    raw = msgspec.to_builtins(load_study(STUDIES / "paper.yaml"))
    raw["tuning"]["instruct"]["arms"] = ["full-0", "full-20"]
    raw["evaluation"]["attacks"]["suffixes_of"] = arms
    raw["evaluation"]["tasks"]["instruct"] = tasks
    with pytest.raises(UsageError, match=words):
        parse_study(raw, "here")
