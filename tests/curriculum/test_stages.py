"""Midtraining goes on in the data stream where pretraining left it."""

from collections import Counter

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from shard_folders import write_source

from curricula.curriculum.config import Curriculum, Midtrain, Tuning
from curricula.curriculum.plan import Budget, arms_of
from curricula.curriculum.stages import stage_tree, written_out
from curricula.curriculum.stream.pretraining import PretrainingBatches

LENGTH, SIZES = 4, {"web": 4 * 41, "safe": 4 * 9, "late": 4 * 23}
ARMS = Curriculum(safe={"web": 1}, interventions={"data": {"web": 3, "safe": 1}}, starts=(0.0, 0.5, 1.0))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for name, size in SIZES.items():
        write_source(root / name, [size + 1])
    return root


def midtrain(**changes):
    return Midtrain(**{"mix": {"web": 2, "late": 1}, "steps": 7, "lr": 1e-4, "global_batch": 3, **changes})


def batches(phases, shards, batch):
    """Of the last phase alone, as a midtraining stage reads them."""
    return PretrainingBatches(phases, shards, LENGTH, batch, 1, 50_000, phases[-2].until)


@examples(150)
@given(
    st.integers(0, 2),
    st.none() | st.floats(0.1, 0.9),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 9),
)
def test_no_sample_repeats_before_its_source_is_exhausted_across_pretraining_and_two_stages(
    shards, number, at, steps, batch, budget_steps, second
):
    budget = Budget(budget_steps * 2 * LENGTH, LENGTH, 2)
    if at is not None and not 0 < budget.step_at(at) < budget.steps:
        at = None
    names = [arm.name for arm in arms_of(ARMS, Budget(10_000, LENGTH, 2))]
    tree = stage_tree(
        {
            "mt": midtrain(at=at, steps=steps, global_batch=batch),
            "chat": Tuning(mix={"gsm8k": 1}, parent="mt"),
            "more": midtrain(parent="chat", steps=second, mix={"safe": 1, "late": 2}),
        },
        names,
        dict.fromkeys(("mt", "chat", "more"), "stages"),
    )
    arm = arms_of(ARMS, budget)[number]
    first, last = tree.stream("mt", arm, budget), tree.stream("more", arm, budget)
    pretraining = PretrainingBatches(arm.blend_phases(budget), shards, LENGTH, 2, 1, 50_000)
    one, two = batches(first, shards, batch), batches(last, shards, 3)
    assert (one.total_steps, two.total_steps) == (steps, second)
    seen = Counter()
    whole = [*pretraining.sample_ids(0, first[-2].until), *one.sample_ids(0, steps * batch), *two.sample_ids(0, second * 3)]
    for source, epoch, sample in whole:
        assert seen[source, sample] == epoch
        seen[source, sample] += 1
        assert epoch == 0 or sum(name == source for name, _ in seen) == SIZES[source] // LENGTH


def test_the_rows_and_the_past_are_those_of_one_stream(shards):
    budget = Budget(20 * 2 * LENGTH, LENGTH, 2)
    arm = arms_of(ARMS, budget)[1]
    tree = stage_tree({"mt": midtrain()}, [arm.name], {"mt": "stages.mt"})
    phases = tree.stream("mt", arm, budget)
    apart, whole = batches(phases, shards, 3), PretrainingBatches(phases, shards, LENGTH, 1, 1, 50_000)
    assert apart.begin == 40
    for step in range(apart.total_steps):
        for row, tokens in enumerate(apart.rows(step, 0, 3).tokens):
            assert (tokens == whole.rows(40 + 3 * step + row, 0, 1).tokens[0]).all()
    assert apart.describe(0)["mix"] == {"web": 2 / 3, "late": 1 / 3}
    changed = tree.stream("mt", arms_of(ARMS, budget)[0], budget)
    assert apart.fingerprint(0) != batches(changed, shards, 3).fingerprint(0)  # another past


@pytest.mark.parametrize(("at", "ends"), [(0.25, [10]), (0.5, [20]), (0.75, [20, 30]), (None, [20, 40])])
def test_midtraining_that_begins_amid_pretraining_follows_only_what_was_read_by_then(at, ends):
    budget = Budget(20 * 2 * LENGTH, LENGTH, 2)
    arm = arms_of(ARMS, budget)[1]  # its interventions start at 0.5
    phases = stage_tree({"mt": midtrain(at=at)}, [arm.name], {"mt": "stages.mt"}).stream("mt", arm, budget)
    read = arm.blend_phases(budget)
    assert [(phase.until, phase.mix) for phase in phases[:-1]] == [(end, phase.mix) for end, phase in zip(ends, read)]
    assert phases[-1].until == ends[-1] + 7 * 3


@pytest.mark.parametrize(("own", "batches"), [({}, (8, 2)), ({"global_batch": 1}, (1, 1)), ({"micro_batch": 4}, (8, 4))])
def test_midtraining_has_the_batches_of_pretraining_unless_its_own_are_smaller(own, batches):
    stage = written_out("mt", Midtrain(mix={"web": 1}, steps=7, lr=1e-4, **own), 8, 2, LENGTH, {})
    assert (stage.global_batch, stage.micro_batch) == batches


def test_raw_text_and_chats_are_told_apart_by_the_way_to_a_model():
    stages = {"mt": midtrain(), "chat": Tuning(mix={"gsm8k": 1}, parent="mt"), "again": midtrain(parent="chat")}
    tree = stage_tree(stages, ["a"], dict.fromkeys(stages, "stages"))
    assert [tree.is_raw(name) for name in ("base", "mt", "chat", "again")] == [True, True, False, False]


def test_the_papers_claims_speak_of_the_papers_stages_alone():
    chat = Tuning(mix={"gsm8k": 1})
    after = Tuning(mix={"gsm8k": 1}, parent="instruct")

    def papers(**stages):
        return stage_tree(stages, ["a"], dict.fromkeys(stages, "stages")).papers

    assert papers(instruct=chat, benign=after, more=after) == ["base", "instruct", "benign"]
    assert papers(mt=midtrain(), instruct=Tuning(mix={"gsm8k": 1}, parent="mt"), benign=after) == ["base"]
    assert papers(instruct=Tuning(mix={"gsm8k": 1}, at=0.5)) == papers(benign=chat, instruct=midtrain()) == ["base"]
