"""The exact stream under random curricula: what every result of a study relies on."""

import json
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from shard_folders import write_source

from curricula.curriculum.stream import pretraining
from curricula.curriculum.stream.blend import Phase
from curricula.curriculum.stream.pretraining import PretrainingBatches, ValidationBatches
from curricula.curriculum.tokens.shards import write_shard
from curricula.errors import UserError

LENGTH, VOCABULARY = 5, 50_000
SIZES = {"a": [7], "b": [40, 3, 0, 60], "c": [501], "d": [2, 2, 2, 2], "e": [90] * 9}  # tokens of each shard
SAMPLES = {name: (sum(sizes) - 1) // LENGTH for name, sizes in SIZES.items()}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for name, sizes in SIZES.items():
        write_source(root / name, sizes)
    return root


mixes = st.dictionaries(st.sampled_from(sorted(SIZES)), st.one_of(st.integers(1, 9), st.floats(1e-3, 1)), min_size=1)


@st.composite
def runs(draw):
    """(phases in whole batches, global batch)"""
    batch = draw(st.sampled_from([1, 2, 4, 6, 12]))
    ends = np.cumsum(draw(st.lists(st.integers(1, 60), min_size=1, max_size=4)))
    return [Phase(int(end) * batch, draw(mixes)) for end in ends], batch


def opened(shards, phases, batch, seed=1):
    return PretrainingBatches(phases, shards, LENGTH, batch, seed, VOCABULARY)


@examples(500)
@given(runs())
def test_no_sample_of_a_source_appears_twice_before_all_appeared_once(shards, run):
    phases, batch = run
    counts = defaultdict(Counter)
    for source, epoch, number in opened(shards, phases, batch).sample_ids(0, phases[-1].until):
        counts[source][number] += 1
        assert counts[source][number] == epoch + 1
        # When a sample appears for the (e + 1)-th time, all others of its source have appeared at least e times.
        if epoch:
            assert len(counts[source]) == SAMPLES[source] and min(counts[source].values()) >= epoch
    for source, seen in counts.items():
        assert max(seen.values()) - min(seen.values()) <= 1 and max(seen) < SAMPLES[source]


@examples(300)
@given(runs(), st.data())
def test_ranks_resumes_and_micro_batches_of_any_size_read_the_same_rows(shards, run, data):
    phases, batch = run
    whole = opened(shards, phases, batch)
    ids = whole.sample_ids(0, phases[-1].until)
    for step in data.draw(st.lists(st.integers(0, whole.total_steps - 1), min_size=1, max_size=3)):
        ranks = data.draw(st.sampled_from([size for size in (1, 2, 3, 4, 6, 12) if batch % size == 0]))
        resumed = opened(shards, phases, batch)
        shares = [resumed.rows(step, r * batch // ranks, (r + 1) * batch // ranks) for r in range(ranks)]
        assert all(share.mask is None and share.documents is None for share in shares)
        rows = np.concatenate([share.tokens for share in shares])
        assert rows.dtype == np.int64 and rows.shape == (batch, LENGTH + 1)
        for row, (_, _, number) in zip(rows, ids[step * batch : (step + 1) * batch]):
            assert row.tolist() == list(range(number * LENGTH, number * LENGTH + LENGTH + 1))


@examples(300)
@given(runs(), mixes, st.integers(1, 30))
def test_arms_share_the_stream_and_the_fingerprint_until_they_part(shards, run, other, more):
    phases, batch = run
    until = phases[-1].until
    trunk = opened(shards, [*phases[:-1], Phase(until + more * batch, phases[-1].mix)], batch)
    arm = opened(shards, [*phases, Phase(until + more * batch, other)], batch)
    step = until // batch
    assert trunk.sample_ids(0, until) == arm.sample_ids(0, until)
    assert trunk.fingerprint(step) == arm.fingerprint(step)
    assert trunk.fingerprint(step) != opened(shards, trunk.phases, batch, seed=2).fingerprint(step)
    assert [arm.describe(s)["phase"] for s in (step - 1, step)] == [len(phases) - 1, len(phases)]
    assert arm.describe(step)["mix"] == {name: weight / sum(other.values()) for name, weight in other.items()}
    if set(phases[0].mix) != {"e"}:
        changed = opened(shards, [Phase(phases[0].until, {"e": 1.0}), *phases[1:]], batch)
        assert changed.fingerprint(step) != arm.fingerprint(step)


@examples(100)
@given(runs(), st.data())
def test_a_stream_that_begins_amid_the_phases_is_the_rest_of_the_whole_one(shards, run, data):
    """As midtraining goes on where pretraining ends, in batches of its own."""
    phases, batch = run
    begin = data.draw(st.integers(0, phases[-1].until - batch))
    whole, rest = opened(shards, phases, 1), PretrainingBatches(phases, shards, LENGTH, batch, 1, VOCABULARY, begin)
    assert rest.total_steps == (phases[-1].until - begin) // batch
    for step in {0, rest.total_steps - 1}:
        places = range(begin + step * batch, begin + (step + 1) * batch)
        assert rest.sample_ids(step * batch, (step + 1) * batch) == whole.sample_ids(places.start, places.stop)
        same = np.concatenate([whole.rows(place, 0, 1).tokens for place in places])
        assert np.array_equal(rest.rows(step, 0, batch).tokens, same)
        assert rest.describe(step) == whole.describe(places.start)
        assert rest.fingerprint(step + 1)["phases"] == whole.fingerprint(places.stop)["phases"]
        if batch == 1:
            assert (rest.fingerprint(step + 1) == whole.fingerprint(places.stop)) == (begin == 0)


@examples(300)
@given(mixes, st.floats(0.1, 10) | st.sampled_from([0.25, 2.0, 8.0]))
@example({"a": 0.5, "b": 0.744056477174085}, 0.25)
def test_equal_fingerprints_mean_equal_streams(shards, mix, factor):
    """Weights whose shares are equal as floating-point numbers need not be in the same ratio."""
    scaled = {name: weight * factor for name, weight in mix.items()}
    one, other = (opened(shards, [Phase(200, weights)], 1) for weights in (mix, scaled))
    is_same = one.fingerprint(200) == other.fingerprint(200)
    is_same_ratio = all(Fraction(str(scaled[name])) == Fraction(str(mix[name])) * Fraction(factor) for name in mix)
    assert is_same or not is_same_ratio  # of the decimal numbers, as a study file has them
    if is_same:
        assert one.sample_ids(0, 200) == other.sample_ids(0, 200)
    assert one.fingerprint(200) == opened(shards, [Phase(200, dict(reversed(mix.items())))], 1).fingerprint(200)


def test_all_that_decides_the_past_is_in_the_fingerprint_and_a_source_without_weight_is_not_even_opened(
    shards, tmp_path, monkeypatch
):
    write_source(tmp_path / "c", [500])

    def past(root=shards, length=LENGTH, batch=4, begin=0, **unused):
        phases = [Phase(24, {"c": 1.0, **unused})]
        run = PretrainingBatches(phases, root, length, batch, 1, VOCABULARY, begin)
        return json.dumps(run.fingerprint((12 - begin) // batch))

    assert past(nowhere=0.0) == past()
    others = [past(tmp_path), past(length=4), past(batch=6), past(begin=4)]
    assert len({past(), *others}) == 5
    plain = past()
    monkeypatch.setattr(pretraining, "ORDER", "another")
    assert past() != plain


def test_samples_after_the_end_are_refused(shards):
    run = opened(shards, [Phase(8, {"e": 1})], 4)
    with pytest.raises(IndexError, match=r"samples \[8, 12\) of 8"):
        run.rows(2, 0, 4)


def test_a_source_tokenised_by_another_tokenizer_is_refused(tmp_path):
    write_source(tmp_path / "a", [100])
    write_source(tmp_path / "b", [100], tokenizer="other")
    with pytest.raises(UserError, match="a and b were tokenised by different tokenizers; delete the folder of the one"):
        opened(tmp_path, [Phase(4, {"a": 1, "b": 1})], 1)


def test_an_id_beyond_the_vocabulary_is_named_by_file_and_place(tmp_path):
    write_source(tmp_path / "a", [50, 50])
    batches = PretrainingBatches([Phase(19, {"a": 1})], tmp_path, LENGTH, 1, 1, 80)
    with pytest.raises(UserError, match=r"00001.bin: the sample at token \d+ holds id \d\d, but the model's vocabulary has 80"):
        for step in range(19):
            batches.rows(step, 0, 1)
    write_shard(tmp_path / "a/validation", [np.arange(70, 81)])
    with pytest.raises(UserError, match=r"validation.bin: the sample at token 5 holds id 80, but .* vocabulary has 80"):
        ValidationBatches(tmp_path / "a", LENGTH, 1, 80, tag=1).rows(1, 0, 1)


def test_a_negative_id_is_named_and_never_reaches_the_model(tmp_path):
    write_source(tmp_path / "odd", [33])
    index, tokens = tmp_path / "odd/00000.idx", np.full(33, 5, np.int32)
    tokens[20] = -7
    index.write_bytes(index.read_bytes()[:17] + b"\x04" + index.read_bytes()[18:])  # Megatron's code of int32
    (tmp_path / "odd/00000.bin").write_bytes(tokens.tobytes())
    odd = PretrainingBatches([Phase(2, {"odd": 1.0})], tmp_path, 16, 2, 5, 320)
    with pytest.raises(UserError, match=r"odd/00000.bin: the sample at token 16 holds id -7, but"):
        odd.rows(0, 0, 2)


def test_validation_batches_hold_every_sample_in_order_and_mask_the_rows_that_fill_up_the_last(tmp_path):
    write_shard(tmp_path / "a/validation", [np.arange(20), np.arange(20, 33)])
    held_out = ValidationBatches(tmp_path / "a", LENGTH, 4, VOCABULARY, tag=VOCABULARY - 1)
    assert held_out.total_steps == 2
    batches = [held_out.rows(step, 0, 4) for step in range(2)]
    assert [row[0] for batch in batches for row in batch.tokens.tolist()][:6] == [0, 5, 10, 15, 20, 25]
    assert np.concatenate([batch.mask for batch in batches]).tolist() == [[1.0] * LENGTH] * 6 + [[0.0] * LENGTH] * 2


def test_a_tag_is_read_in_validation_but_no_target(tmp_path):
    write_shard(tmp_path / "a/validation", [np.array([3, 9, 4, 9, 9, 5, 6, 7, 8, 9, 3])])
    held_out = ValidationBatches(tmp_path / "a", LENGTH, 2, VOCABULARY, tag=9)
    tokens, mask, _ = held_out.rows(0, 0, 2)
    assert tokens[0].tolist() == [3, 9, 4, 9, 9, 5] and mask.tolist() == [[0, 1, 0, 0, 1], [1, 1, 1, 0, 1]]
    assert held_out.bytes_per_token(np.full(VOCABULARY, 2)) == 2.0


@pytest.mark.parametrize("sizes", [[0], [0, 0], [5]])
def test_a_source_without_one_sample_is_refused(tmp_path, sizes):
    write_source(tmp_path / "a", sizes)
    with pytest.raises(UserError, match=f"source a: {sum(sizes)} tokens in .* are fewer than one sample of 6; give it"):
        opened(tmp_path, [Phase(4, {"a": 1})], 1)


@pytest.mark.parametrize("content", ["[]", '{"tokens": 3}', "{", "3"])
def test_a_damaged_manifest_is_refused(tmp_path, content):
    write_source(tmp_path / "a", [100])
    (tmp_path / "a" / "00000.json").write_text(content)
    with pytest.raises(UserError, match="00000.json: not"):
        opened(tmp_path, [Phase(4, {"a": 1})], 1)


def test_a_source_without_shards_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing: holds no finished shard"):
        opened(tmp_path, [Phase(4, {"nothing": 1})], 1)


def test_a_manifest_that_contradicts_its_shard_or_the_other_manifests_is_refused(tmp_path):
    write_source(tmp_path / "web", [40, 40])
    manifest = tmp_path / "web/00001.json"
    content = json.loads(manifest.read_text())
    for change, said in (
        ({"tokens": 39}, "web/00001.bin: 40 tokens, but its manifest says 39"),
        ({"shards": 7}, r"web: holds shards up to 00001, but its manifests expect \[2, 7\]"),
    ):
        manifest.write_text(json.dumps({**content, **change}))
        with pytest.raises(UserError, match=said):
            opened(tmp_path, [Phase(4, {"web": 1.0})], 2)
    manifest.unlink()
    (tmp_path / "web/00002.json").write_text(json.dumps(content))
    (tmp_path / "web/9notes.json").write_text("{}")
    with pytest.raises(UserError, match=r"web: holds shards up to 00002, but its manifests expect \[2\]; delete the"):
        opened(tmp_path, [Phase(4, {"web": 1.0})], 2)


@examples(200)
@given(runs(), st.dictionaries(st.sampled_from(sorted(SIZES)), st.sampled_from(["all", "tags", "none"])))
@example(([Phase(8, {"b": 1.0})], 4), {"e": "tags"})  # of a source that is not read
def test_only_what_a_sources_loss_asks_for_counts_and_the_stream_stays_the_same(shards, run, loss):
    phases, batch = run
    plain, tag = opened(shards, phases, batch), 3
    masked = PretrainingBatches(phases, shards, LENGTH, batch, 1, VOCABULARY, loss=loss, tag=tag)
    ids = plain.sample_ids(0, phases[-1].until)
    assert masked.sample_ids(0, phases[-1].until) == ids
    for step in {0, plain.total_steps - 1}:
        rows = masked.rows(step, 0, batch)
        assert np.array_equal(rows.tokens, plain.rows(step, 0, batch).tokens)
        kinds = [loss.get(source, "all") for source, _, _ in ids[step * batch : (step + 1) * batch]]
        targets = rows.tokens[:, 1:]
        ideal = [{"all": row >= 0, "tags": row == tag, "none": row < 0}[kind] for row, kind in zip(targets, kinds)]
        assert (rows.mask is None) == (set(kinds) == {"all"})
        assert rows.mask is None or (rows.mask.dtype == np.float32 and np.array_equal(rows.mask, np.array(ideal)))
    # A mask is part of the past of the phases that have its source, and of nothing else.
    end, used = plain.total_steps, {name for phase in phases for name, weight in phase.mix.items() if weight}
    assert (masked.fingerprint(end) == plain.fingerprint(end)) == all(loss.get(name, "all") == "all" for name in used)
