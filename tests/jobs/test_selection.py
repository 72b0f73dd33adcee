"""Which elements a command acts on: --stage, --job, --arm and --from."""

import argparse

import pytest
from small_studies import by_job, demo

from curricula.errors import UsageError
from curricula.jobs.cli.options import add_selection
from curricula.jobs.graph import plan_study
from curricula.jobs.selection import Selection, select
from curricula.jobs.study import parse_study

PLAN = plan_study(parse_study(demo(), "demo"))


def given(*arguments: str) -> Selection:
    parser = argparse.ArgumentParser()
    add_selection(parser)
    return Selection.from_args(parser.parse_args(arguments))


def test_everything_is_selected_by_default():
    assert not given()
    assert select(PLAN, given()) == list(PLAN.needs)


def test_an_arm_takes_along_the_trunk_it_branches_from_and_the_data():
    chosen = by_job(select(PLAN, given("--arm", "full-60"), with_needs=True))
    trained = {name: labels for name, labels in chosen.items() if name.startswith("pretrain")}
    assert trained == {"pretrain-trunk-100": ["trunk"], "pretrain-trunk-300": ["trunk"], "pretrain-60": ["full-60"]}
    assert chosen["instruct-60"] == ["full-60"] and "instruct-20" not in chosen and "tokenize" in chosen
    assert all(label.startswith("full-60/") for label in chosen["evaluate-base-60"])


def test_an_arm_that_the_trunk_itself_trains_takes_all_of_the_trunk():
    chosen = select(PLAN, given("--stage", "pretrain", "--arm", "safe-100"), with_needs=True)
    assert chosen == [(job.name, "trunk") for job in PLAN.jobs if job.name.startswith("pretrain-trunk-")]


def test_an_arm_takes_no_other_arm_along_whose_suffixes_it_tries():
    raw = demo()
    raw["evaluation"] |= {"attacks": {"suffixes_of": ["data-0"]}, "tasks": {"instruct": ["gcg", "transfer-topk"]}}
    chosen = select(plan_study(parse_study(raw, "demo")), given("--arm", "full-20"), with_needs=True)
    assert not [label for _, label in chosen if label.startswith("data-0")]


def test_an_arm_alone_is_what_bears_its_name():
    for arm in ("full-60", "trunk"):
        of_arm = [(job.name, element.label) for job, element in PLAN.elements() if element.arm == arm]
        assert select(PLAN, given("--arm", arm)) == of_arm != []


def test_stages_kinds_and_jobs_can_be_named():
    assert {*by_job(select(PLAN, given("--stage", "benign")))} == {"benign-0", "benign-20", "benign-60", "benign-100"}
    assert {*by_job(select(PLAN, given("--job", "export-base-20,report")))} == {"export-base-20", "report"}
    assert select(PLAN, given("--from", "evaluate"))[0][0] == "evaluate-base-0"
    assert [*by_job(select(PLAN, given("--stage", "evaluate", "--job", "evaluate-base-0")))] == ["evaluate-base-0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "tuning"], "stage 'tuning' is not in this study; choose one of prepare"),
        (["--job", "tuning"], "job 'tuning' is not in this study; choose one of prepare"),
        (["--from", "x"], "stage or job 'x' is not in this study; choose one of prepare"),
        (["--seeds", "7"], "seed '7' is not in this study; choose one of 42"),
        (["--arm", "full-30"], "arm 'full-30' is not in this study; choose one of trunk, data-0"),
        (["--stage", "prepare", "--from", "report"], "no element matches all these options together"),
    ],
)
def test_a_name_that_selects_nothing_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        select(PLAN, given(*arguments))


def test_names_may_be_given_twice_and_with_spaces():
    assert given("--arm", "full-20, full-60,full-20").arms == ("full-20", "full-60")
