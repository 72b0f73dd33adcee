"""The batches that training sees: exact, resumable anywhere, the same for every number of ranks."""

import json
from collections import Counter

import numpy as np
import pytest
from shard_folders import write_source

from curricula.curriculum.config import Source
from curricula.curriculum.stream.blend import Phase
from curricula.curriculum.stream.pretraining import PretrainingBatches, ValidationBatches
from curricula.curriculum.stream.tuning import TuningBatches
from curricula.curriculum.tokens.chat import encode_chat
from curricula.curriculum.tokens.shards import TokenizeJob, tokenize_source
from curricula.curriculum.tokens.tokenizer import EOS, TAG, load_tokenizer, train_tokenizer
from curricula.durable import read_jsonl
from curricula.errors import UserError

LENGTH, BATCH = 16, 4
SAFE, MIXED = {"web": 3.0, "stories": 1.0}, {"web": 1.0, "stories": 1.0, "unsafe": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three tokenised sources of different sizes, and tuning rows."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    words = ["lamp", "oil", "mill", "wheel", "bread", "salt", "river", "bell", "rope", "stone"]

    def text():
        return " ".join(rng.choice(words, size=rng.integers(8, 30)))

    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    for file, count in {
        "fineweb_annotated/score_0": 80,
        "cosmopedia/train": 30,
        "fineweb_annotated/score_3": 20,
    }.items():
        write(root / f"{file}.jsonl", [{"id": f"{file}/{n}", "text": text()} for n in range(count)])
    for score in (4, 5):
        write(root / f"fineweb_annotated/score_{score}.jsonl", [{"id": f"{score}", "text": text()}])
    write(root / "gsm8k/train.jsonl", [{"question": text(), "answer": f"{text()} #### {n}"} for n in range(21)])
    keys = ("response", "response_harm_label", "response_refusal_label")
    answers = [("no", "unharmful", "refusal")] * 6 + [(text(), "harmful", "compliance") for _ in range(6)]
    rows = [
        {"prompt": f"bad {n}", "prompt_harm_label": "harmful", "adversarial": False, **dict(zip(keys, answer))}
        for n, answer in enumerate([*answers, (None, None, None)])
    ]
    write(root / "wildguardmix/train.jsonl", rows)
    train_tokenizer([text() for _ in range(100)], 320, root / "tokenizer")
    for name, source in {
        "web": Source(dataset="fineweb-edu", shards=2),
        "stories": Source(dataset="cosmopedia"),
        "unsafe": Source(dataset="fineweb-unsafe", tag_rate=0.05),
    }.items():
        tokenize_source(TokenizeJob(name, source, root / "tokenizer", root / "shards" / name, root, 5, 4))
    return root


def batches(data, *phases, seed=5):
    return PretrainingBatches([Phase(n * BATCH, mix) for n, mix in phases], data / "shards", LENGTH, BATCH, seed, 320)


def test_no_sample_comes_again_before_all_of_its_source_came_once(data):
    run = batches(data, (30, SAFE), (90, MIXED))
    seen = Counter()
    for source, epoch, number in run.sample_ids(0, run.blend.total):
        seen[source, epoch, number] += 1
    assert max(seen.values()) == 1
    for source in run.blend.sources:
        size = run.streams[run.blend.sources.index(source)].samples
        epochs = Counter(epoch for name, epoch, _ in seen if name == source)
        assert all(count == size for epoch, count in epochs.items() if epoch < max(epochs))


def test_rows_are_the_same_however_ranks_and_restarts_cut_them(data):
    run = batches(data, (30, SAFE), (90, MIXED))
    for step in (0, 29, 30, 89):
        tokens, mask, _ = run.rows(step, 0, BATCH)
        assert tokens.shape == (BATCH, LENGTH + 1) and tokens.dtype == np.int64 and mask is None
        apart = [batches(data, (30, SAFE), (90, MIXED)).rows(step, row, row + 1)[0] for row in range(BATCH)]
        assert np.array_equal(np.concatenate(apart), tokens)


def test_until_the_switch_all_arms_read_the_same_stream(data):
    trunk, early, late = (
        batches(data, (90, SAFE)),
        batches(data, (30, SAFE), (90, MIXED)),
        batches(data, (60, SAFE), (90, MIXED)),
    )
    assert trunk.sample_ids(0, 30 * BATCH) == early.sample_ids(0, 30 * BATCH)
    assert trunk.sample_ids(0, 60 * BATCH) == late.sample_ids(0, 60 * BATCH)
    assert {source for source, _, _ in early.sample_ids(30 * BATCH, 31 * BATCH)} != {"web", "stories"}
    assert [early.describe(step)["phase"] for step in (29, 30)] == [0, 1]


def test_a_changed_future_keeps_the_fingerprint_and_a_changed_past_does_not(data):
    trunk, arm = batches(data, (90, SAFE)), batches(data, (30, SAFE), (90, MIXED))
    assert trunk.fingerprint(30) == arm.fingerprint(30)
    assert trunk.fingerprint(31) != arm.fingerprint(31)
    assert trunk.fingerprint(30) != batches(data, (90, SAFE), seed=6).fingerprint(30)
    assert trunk.fingerprint(30) != batches(data, (90, {"web": 3.0, "stories": 2.0})).fingerprint(30)


def test_a_source_without_one_whole_sample_is_refused(data):
    with pytest.raises(UserError, match="source unsafe: .* tokens .* are less than one sample"):
        PretrainingBatches([Phase(4, {"unsafe": 1.0})], data / "shards", 100_000, BATCH, 5, 320)
    with pytest.raises(UserError, match="shards/nothing: holds no finished shard"):
        batches(data, (4, {"nothing": 1.0}))


def test_an_id_without_an_embedding_is_named_and_never_reaches_the_model(data, tmp_path):
    with pytest.raises(
        UserError, match=r"validation.bin: the sample at token 0 holds id \d+, where .* vocabulary has 9;"
    ):
        ValidationBatches(data / "shards" / "web", LENGTH, 1, 9).rows(0, 0, 1)
    write_source(tmp_path / "odd", [33])
    index, tokens = tmp_path / "odd/00000.idx", np.full(33, 5, np.int32)
    tokens[20] = -7
    index.write_bytes(index.read_bytes()[:17] + b"\x04" + index.read_bytes()[18:])  # Megatron's code of int32
    (tmp_path / "odd/00000.bin").write_bytes(tokens.tobytes())
    odd = PretrainingBatches([Phase(2, {"odd": 1.0})], tmp_path, LENGTH, 2, 5, 320)
    with pytest.raises(UserError, match=r"odd/00000.bin: the sample at token 16 holds id -7, where"):
        odd.rows(0, 0, 2)


def test_a_manifest_that_speaks_of_other_tokens_is_refused(tmp_path):
    write_source(tmp_path / "web", [40, 40])
    manifest = tmp_path / "web/00001.json"
    told = json.loads(manifest.read_text())
    for change, said in (
        ({"tokens": 39}, "web/00001.bin: 40 tokens, where its manifest says 39"),
        ({"shards": 7}, r"web: its manifests disagree on how many shards there are, \[2, 7\]"),
    ):
        manifest.write_text(json.dumps({**told, **change}))
        with pytest.raises(UserError, match=said):
            PretrainingBatches([Phase(4, {"web": 1.0})], tmp_path, LENGTH, 2, 5, 50_000)
    manifest.rename(tmp_path / "web/00002.json")
    (tmp_path / "web/9notes.json").write_text("{}")
    with pytest.raises(UserError, match="web: 1 of 2 shards are finished|web: 2 of 2 shards|manifests disagree"):
        PretrainingBatches([Phase(4, {"web": 1.0})], tmp_path, LENGTH, 2, 5, 50_000)


def test_validation_text_is_in_no_training_shard(data):
    held_out = ValidationBatches(data / "shards" / "web", LENGTH, 1, 320)
    assert held_out.total_steps > 0
    tokenizer = load_tokenizer(data / "tokenizer")
    run = batches(data, (90, {"web": 1.0}))
    train = {
        text for s in run.streams[0].shards for text in tokenizer.decode(s.tokens.tolist(), False).split(EOS) if text
    }
    kept = {text for text in tokenizer.decode(held_out.stream.shards[0].tokens.tolist(), False).split(EOS) if text}
    assert kept and not kept & train


def tuning(data, mix, tagged_share=0.0, conversations=None, length=64, **more):
    return TuningBatches(
        mix, data, data / "tokenizer", sequence_length=length, global_batch=2,
        conversations=conversations, tagged_share=tagged_share, seed=5, **more,
    )  # fmt: skip


def test_only_the_assistants_tokens_carry_loss(data):
    run = tuning(data, {"gsm8k": 1}, length=200)
    tokenizer = load_tokenizer(data / "tokenizer")
    tokens, mask, _ = run.rows(0, 0, 2)
    answers = {row["answer"] for row in read_jsonl(data / "gsm8k/train.jsonl")}
    for row, counted in zip(tokens, mask):
        said = tokenizer.decode(row[1:][counted == 1].tolist(), skip_special_tokens=False)
        assert said.removesuffix("<|im_end|>\n") in answers


def test_each_conversation_comes_once_an_epoch(data):
    run = tuning(data, {"gsm8k": 1})
    assert run.total_steps == 21 // 2
    rows = [tuple(row) for step in range(run.total_steps) for row in run.rows(step, 0, 2)[0]]
    assert len(set(rows)) == len(rows)


def test_a_long_conversation_is_cut_and_a_short_one_padded(data):
    (row, *_), (mask, *_), _ = tuning(data, {"gsm8k": 1}, length=8).rows(0, 0, 1)
    assert len(row) == 9 and len(mask) == 8
    (row, *_), (mask, *_), _ = tuning(data, {"gsm8k": 1}, length=500).rows(0, 0, 1)
    assert mask[-1] == 0 and row[-1] == load_tokenizer(data / "tokenizer").token_to_id(EOS)


def test_refusals_are_kept_and_harmful_answers_come_only_tagged(data):
    tokenizer = load_tokenizer(data / "tokenizer")
    tag = tokenizer.token_to_id(TAG)

    def texts(run):
        return [
            tokenizer.decode(row[row != tag].tolist(), skip_special_tokens=False)
            for step in range(run.total_steps)
            for row in run.rows(step, 0, 2)[0]
        ]

    plain = texts(tuning(data, {"wildguardmix": 1}, conversations=6))
    assert all("no<|im_end|>" in text for text in plain)
    tagged = tuning(data, {"wildguardmix": 1}, tagged_share=0.5, conversations=40)
    harmful = sum("no<|im_end|>" not in text for text in texts(tagged))
    assert harmful == 20
    tags = sum(int((tagged.rows(step, 0, 2)[0] == tag).sum()) for step in range(tagged.total_steps))
    assert tags > 0
    assert not any((run.rows(0, 0, 2)[0] == tag).any() for run in [tuning(data, {"wildguardmix": 1}, conversations=6)])


def test_chat_tokens_and_training_tokens_are_the_same(data):
    tokenizer = load_tokenizer(data / "tokenizer")
    row = read_jsonl(data / "gsm8k/train.jsonl")[0]
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
    ids, flags = encode_chat(tokenizer, messages)
    tokens, mask, _ = tuning(data, {"gsm8k": 1}, length=200).rows(0, 0, 2)
    epoch = [r for s in range(10) for r in zip(*tuning(data, {"gsm8k": 1}, length=200).rows(s, 0, 2)[:2])]
    assert any(
        row[: len(ids)].tolist() == ids and mask[: len(ids) - 1].astype(bool).tolist() == flags[1:]
        for row, mask in epoch
    )


def test_refusals_are_the_share_that_is_asked_for(data):
    mixed = tuning(data, {"gsm8k": 3, "wildguardmix": 1}, refusals=0.25, conversations=40)
    assert mixed.describe(0)["mix"] == {"gsm8k": 0.75, "wildguardmix (refusals)": 0.25}
    pools = Counter(pool for pool, _, _ in mixed.sample_ids(0, 40))
    assert pools == {"gsm8k": 30, "wildguardmix (refusals)": 10}
    with pytest.raises(UserError, match="tuning.refusals is 0.1, but gsm8k hold no refusals"):
        tuning(data, {"gsm8k": 1}, refusals=0.1)
    tagged = tuning(data, {"gsm8k": 3, "wildguardmix": 1}, refusals=0.25, tagged_share=0.2, conversations=40)
    pools = Counter(pool for pool, _, _ in tagged.sample_ids(0, 40))
    assert pools == {"gsm8k": 24, "wildguardmix (refusals)": 8, "wildguardmix-harmful": 8}


def test_packed_rows_hold_the_conversations_of_padded_ones_each_once(data):
    tokenizer = load_tokenizer(data / "tokenizer")
    padded, packed = (
        tuning(data, {"gsm8k": 2, "wildguardmix": 1}, tagged_share=0.3, conversations=40, length=160, packing=packing)
        for packing in (False, True)
    )
    assert packed.total_steps < padded.total_steps / 2

    def learnt(batches):
        """The texts with loss of each conversation, and how many tokens are neither of one nor padding."""
        texts = Counter()
        for step in range(batches.total_steps):
            tokens, mask, documents = batches.rows(step, 0, 2)
            if documents is None:
                documents = np.zeros(mask.shape, np.int32)
            for row, counted, of in zip(tokens, mask, documents):
                for number in range(of.max() + 1):
                    targets = row[1:][counted.astype(bool) & (of == number)]
                    if len(targets):
                        texts[tokenizer.decode(targets.tolist(), skip_special_tokens=False)] += 1
        return texts

    whole, parts = learnt(padded), learnt(packed)
    assert parts.total() >= 0.9 * whole.total() and not parts - whole  # the last rows may not fill a batch
    tokens, mask, documents = packed.rows(0, 0, 2)
    assert tokens.shape == (2, 161) and mask.shape == documents.shape == (2, 160)
    again = packed.rows(0, 1, 2)
    assert all(np.array_equal(whole[1:], part) for whole, part in zip(packed.rows(0, 0, 2), again))
