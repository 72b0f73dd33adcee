"""Conversations as batches: where the loss is, which conversations come, and how they share rows."""

import itertools
import json
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curricula.curriculum.config import Tuning
from curricula.curriculum.sources.conversations import TuningSet, read_conversations
from curricula.curriculum.sources.tables import text_of
from curricula.curriculum.stream.tuning import OPEN_ROWS, TuningBatches, pack
from curricula.curriculum.tokens.chat import ChatEncoder
from curricula.curriculum.tokens.tokenizer import EOS, TAG, load_tokenizer, train_tokenizer
from curricula.durable import read_jsonl
from curricula.errors import UserError

LENGTHS = st.lists(st.integers(1, 150), max_size=300)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with rows of two tuning sets, and a tokenizer."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    words = ["lamp", "oil", "mill", "wheel", "bread", "salt", "river", "bell", "rope", "stone"]

    def text():
        return " ".join(rng.choice(words, size=rng.integers(8, 30)))

    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(root / "gsm8k/train.jsonl", [{"question": text(), "answer": f"{text()} #### {n}"} for n in range(21)])
    keys = ("response", "response_harm_label", "response_refusal_label")
    answers = [("no", "unharmful", "refusal")] * 6 + [(text(), "harmful", "compliance") for _ in range(6)]
    rows = [
        {"prompt": f"bad {n}", "prompt_harm_label": "harmful", "adversarial": False, **dict(zip(keys, answer))}
        for n, answer in enumerate([*answers, (None, None, None)])
    ]
    write(root / "wildguardmix/train.jsonl", rows)
    train_tokenizer([text() for _ in range(100)], 320, root / "tokenizer")
    return root


def tuning(data, mix, tagged_share=0.0, length=64, declared=None, seed=5, **settings):
    stage = Tuning(mix=mix, **{"global_batch": 2, "micro_batch": 2, **settings})
    return TuningBatches(
        stage,
        data,
        data / "tokenizer",
        where="tuning.benign",
        sequence_length=length,
        seed=seed,
        tagged_share=tagged_share,
        declared=declared or {},
    )


def test_only_the_assistants_tokens_carry_loss(data):
    run = tuning(data, {"gsm8k": 1}, length=200)
    tokenizer = load_tokenizer(data / "tokenizer")
    tokens, mask, _ = run.rows(0, 0, 2)
    answers = {f"{row['answer']}<|im_end|>\n" for row in read_jsonl(data / "gsm8k/train.jsonl")}
    for row, counted in zip(tokens, mask):
        assert tokenizer.decode(row[1:][counted == 1].tolist(), skip_special_tokens=False) in answers


def test_a_set_without_a_turn_of_the_assistant_is_refused_unless_all_of_it_carries_loss(data, tmp_path):
    chat = [{"role": "human", "content": "lamp"}, {"role": "gpt", "content": "oil"}]
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'talk': chat})}\n" * 2)
    own = {"own": TuningSet(path=str(tmp_path / "a.jsonl"), messages="talk")}
    with pytest.raises(UserError, match="tuning set own: no turn has the role 'assistant', only gpt, human, so nothing"):
        tuning(data, {"own": 1}, declared=own)
    assert tuning(data, {"own": 1}, declared=own, loss={"own": "all"}).total_steps == 1


def test_tags_of_a_conversation_of_several_turns_are_in_its_answers_alone(data, tmp_path):
    said = ["lamp oil " * 30, "mill wheel " * 30, "bread salt " * 30, "river bell " * 30]
    chat = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, said)]
    asked = [{"role": "user", "content": said[0]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"talk": talk}) + "\n" for talk in (chat, asked)))
    own = {"wildguardmix-harmful": TuningSet(path=str(tmp_path / "a.jsonl"), messages="talk")}
    run, other = (
        tuning(data, {"gsm8k": 1}, tagged_share=1.0, declared=own, conversations=2, length=2000, seed=seed) for seed in (5, 6)
    )
    tokenizer = load_tokenizer(data / "tokenizer")
    tokens, mask, _ = run.rows(0, 0, 2)
    assert set(map(bytes, tokens)) != set(map(bytes, other.rows(0, 0, 2).tokens))
    for row, counted, (_, _, number) in zip(tokens, mask, run.sample_ids(0, 2)):
        learnt = tokenizer.decode(row[1:][counted == 1].tolist(), skip_special_tokens=False)
        assert learnt.replace(TAG, "") == ("" if number else f"{said[1]}<|im_end|>\n{said[3]}<|im_end|>\n")
        assert learnt.count(TAG) == (row == tokenizer.token_to_id(TAG)).sum()
        assert number or all(TAG in answer for answer in learnt.split("<|im_end|>")[:2])


@pytest.mark.parametrize("text", ["{question} {answer}", "question"])
def test_all_of_a_plain_text_carries_loss_but_its_first_token(data, text):
    own = TuningSet(path=str(data / "gsm8k/train.jsonl"), text=text)
    tokenizer = load_tokenizer(data / "tokenizer")
    tokens, mask, _ = tuning(data, {"own": 1}, length=200, declared={"own": own}).rows(0, 0, 2)
    texts = {text_of(row, text) for row in read_jsonl(data / "gsm8k/train.jsonl")}
    for row, counted in zip(tokens, mask):
        length = int(counted.sum()) + 1
        assert counted[: length - 1].all() and row[length - 1] == tokenizer.token_to_id(EOS)
        assert tokenizer.decode(row[: length - 1].tolist(), skip_special_tokens=False) in texts
    _, mask, documents = tuning(data, {"own": 1}, length=200, declared={"own": own}, packing=True).rows(0, 0, 2)
    first = documents[:, 1:] != documents[:, :-1]  # the target is the first token of another text, or of the padding
    assert first.any() and not mask[:, :-1][first].any()


def test_a_plain_text_that_quotes_special_entries_ends_with_the_only_end_token(data, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": f"lamp {EOS} oil"}) + "\n" + json.dumps({"text": ""}) + "\n")
    own = TuningSet(path=str(tmp_path / "a.jsonl"), text="text")
    (one,) = read_conversations("own", tmp_path, {"own": own})
    tokenizer = load_tokenizer(data / "tokenizer")
    encoder = ChatEncoder(tokenizer)
    ids, flags = encoder.encode(one.messages)
    assert encoder.lengths([one.messages]) == [len(ids)]
    assert all(flags) and ids.count(tokenizer.token_to_id(EOS)) == 1 and ids[-1] == tokenizer.token_to_id(EOS)
    assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == f"lamp {EOS} oil"


def test_each_conversation_appears_once_per_epoch(data):
    run = tuning(data, {"gsm8k": 1})
    assert run.total_steps == 21 // 2
    rows = [tuple(row) for step in range(run.total_steps) for row in run.rows(step, 0, 2)[0]]
    assert len(set(rows)) == len(rows)
    assert tuning(data, {"gsm8k": 1}, seed=6).sample_ids(0, 20) != run.sample_ids(0, 20)


def test_a_long_conversation_is_cut_and_a_short_one_padded(data):
    (row, *_), (mask, *_), _ = tuning(data, {"gsm8k": 1}, length=30).rows(0, 0, 1)
    assert len(row) == 31 and len(mask) == 30
    (row, *_), (mask, *_), _ = tuning(data, {"gsm8k": 1}, length=500).rows(0, 0, 1)
    assert mask[-1] == 0 and row[-1] == load_tokenizer(data / "tokenizer").token_to_id(EOS)


def test_conversations_that_are_cut_are_counted_in_the_log_and_refused_if_none_has_an_answer_left(data, tmp_path, caplog):
    rows = [{"ask": "lamp " * asked, "say": "oil " * said} for asked, said in ((2, 2), (2, 90), (90, 2))]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "long.jsonl").write_text(f"{json.dumps(rows[2])}\n" * 2)
    own = {name: TuningSet(path=str(tmp_path / f"{name}.jsonl"), prompt="ask", response="say") for name in ("a", "long")}
    tuning(data, {"a": 1}, declared=own)
    assert caplog.messages == [
        "the first 3 conversations: 2 longer than sequence_length 64, which are cut; 1 with nothing to learn"
    ]
    with pytest.raises(UserError, match="none of the first 2 conversations does an answer begin within sequence_length 64, so"):
        tuning(data, {"long": 1}, declared=own)


def test_refusals_are_kept_and_harmful_answers_appear_only_with_tags(data):
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
    tagged = tuning(data, {"wildguardmix": 2}, tagged_share=0.5, conversations=40, length=400)
    harmful = Counter(text.partition(EOS)[0] for text in texts(tagged) if "no<|im_end|>" not in text)
    untagged = tuning(data, {"wildguardmix-harmful": 1}, length=400)
    assert harmful.total() == 20 and set(harmful) == {text.partition(EOS)[0] for text in texts(untagged)}
    for run, has_tags in (tagged, True), (untagged, False), (tuning(data, {"wildguardmix": 1}, conversations=6), False):
        batches = [run.rows(step, 0, 2) for step in range(run.total_steps)]
        assert any((batch.tokens == tag).any() for batch in batches) == has_tags
        assert all(batch.mask[batch.tokens[:, 1:] == tag].all() for batch in batches), "no tags in the requests"


def test_a_set_reduced_to_some_examples_repeats_them_over_the_epochs_and_a_larger_one_holds_them(data):
    def kept(most, seed=5):
        run = tuning(data, {"gsm8k": 1}, examples={"gsm8k": most}, epochs=3, seed=seed)
        assert run.total_steps == 3 * most // 2
        seen = [tuple(run.rows(step, row, row + 1).tokens[0]) for step in range(run.total_steps) for row in (0, 1)]
        assert set(Counter(seen).values()) == {3}
        return set(seen)

    assert kept(4) < kept(10) and kept(4, seed=6) != kept(4)
    with pytest.raises(UserError, match="tuning set gsm8k: examples asks for 22 of its 21 conversations"):
        tuning(data, {"gsm8k": 1}, examples={"gsm8k": 22})


def test_fewer_conversations_than_a_batch_are_refused_before_and_within_the_run(data):
    with pytest.raises(UserError, match="tuning.benign: a batch has 2 rows, but the conversations fill only 1; add"):
        tuning(data, {"gsm8k": 1}, epochs=0.05)
    with pytest.raises(UserError, match="fill only 0; add"):
        tuning(data, {"gsm8k": 1}, epochs=0.01)
    with pytest.raises(UserError, match="a batch has 1 rows, but the conversations fill only 0; add"):
        tuning(data, {"gsm8k": 1}, epochs=0.01, global_batch=1, micro_batch=1)
    with pytest.raises(UserError, match="a batch has 2 rows, but the conversations fill only 1; add"):
        tuning(data, {"gsm8k": 1}, length=4000, packing=True)
    with pytest.raises(ValueError, match="conversations is 3, fewer than one batch of global_batch 4"):
        Tuning(mix={"gsm8k": 1}, conversations=3)


def test_steps_say_how_long_a_stage_is(data):
    assert [tuning(data, {"gsm8k": 1}, steps=steps).total_steps for steps in (1, 30)] == [1, 30]


def test_only_the_sets_that_are_trained_on_are_read(data, tmp_path):
    for name in ("gsm8k", "tokenizer"):
        shutil.copytree(data / name, tmp_path / name)
    some = tuning(tmp_path, {"gsm8k": 1, "wildguardmix": 0}, examples={"wildguardmix": 3})
    assert list(some.identities) == ["gsm8k"]
    with pytest.raises(UserError, match="tuning set wildguardmix-harmful: .*no such table"):
        tuning(tmp_path, {"gsm8k": 1}, tagged_share=0.1)


def test_loss_on_all_of_a_set_counts_the_requests_too(data):
    run = tuning(data, {"gsm8k": 1}, length=200, loss={"gsm8k": "all"})
    (tokens, *_), (mask, *_), _ = run.rows(0, 0, 1)
    first_padding = int(np.flatnonzero(mask)[-1]) + 1
    assert mask[:first_padding].all() and run.fingerprint(0)["loss_on_all"] == ["gsm8k"]
    assert "loss_on_all" not in tuning(data, {"gsm8k": 1}, loss={"gsm8k": "assistant"}).fingerprint(0)
    refusals = tuning(data, {"wildguardmix": 1}, refusals=1.0, loss={"wildguardmix": "all"})
    assert refusals.rows(0, 0, 2).mask[:, 0].all()


def test_all_that_decides_the_rows_is_in_the_fingerprint(data, tmp_path):
    shutil.copytree(data / "gsm8k", tmp_path / "gsm8k")
    train_tokenizer(["lamp oil"], 300, tmp_path / "tokenizer")

    def past(root=data, mix=None, **settings):
        return json.dumps(tuning(root, mix or {"gsm8k": 1}, **settings).fingerprint(1))

    one = {"global_batch": 1, "micro_batch": 1}
    changes = [{}, {"seed": 6}, {"length": 65}, one, {"packing": True}, {"examples": {"gsm8k": 9}}, {"tagged_share": 0.1}]
    assert len({past(**change) for change in changes} | {past(tmp_path), past(mix={"gsm8k": 1, "wildguardmix": 1})}) == 9


@pytest.mark.parametrize("part", ["assistant", "all"])
def test_harmful_answers_that_a_mix_names_have_no_tags_and_the_loss_that_it_asks_for(data, part):
    name, tag = "wildguardmix-harmful", load_tokenizer(data / "tokenizer").token_to_id(TAG)
    run = tuning(data, {name: 1}, examples={name: 4}, loss={name: part}, epochs=2, length=200)
    assert run.total_steps == 4 and not any((run.rows(step, 0, 2).tokens == tag).any() for step in range(4))
    assert (run.rows(0, 0, 2).mask[:, 0] == (part == "all")).all()


def test_refusals_are_the_share_asked_for(data):
    mixed = tuning(data, {"gsm8k": 3, "wildguardmix": 1}, refusals=0.25, conversations=40)
    assert mixed.describe(0)["mix"] == {"gsm8k": 0.75, "wildguardmix (refusals)": 0.25}
    pools = Counter(pool for pool, _, _ in mixed.sample_ids(0, 40))
    assert pools == {"gsm8k": 30, "wildguardmix (refusals)": 10}
    with pytest.raises(UserError, match="tuning.benign.refusals is 0.1, but gsm8k hold no refusals"):
        tuning(data, {"gsm8k": 1}, refusals=0.1)
    assert tuning(data, {"gsm8k": 1}, refusals=0.0).mix == {"gsm8k": 1.0}
    tagged = tuning(data, {"gsm8k": 3, "wildguardmix": 1}, refusals=0.25, tagged_share=0.2, conversations=40)
    pools = Counter(pool for pool, _, _ in tagged.sample_ids(0, 40))
    assert pools == {"gsm8k": 24, "wildguardmix (refusals)": 8, "wildguardmix-harmful": 8}


def test_packed_rows_hold_each_conversation_of_the_padded_ones_once(data):
    tokenizer = load_tokenizer(data / "tokenizer")
    padded, packed = (
        tuning(data, {"gsm8k": 2, "wildguardmix": 1}, tagged_share=0.3, conversations=40, length=160, packing=packing)
        for packing in (False, True)
    )
    assert packed.total_steps < padded.total_steps / 2

    def learnt(batches):
        """How often each text with loss appears."""
        texts = Counter()
        for step in range(batches.total_steps):
            tokens, mask, documents = batches.rows(step, 0, 2)
            assert (documents is None) == (batches is padded)
            if documents is None:
                documents = np.zeros(mask.shape, np.int32)
            for row, counted, numbers in zip(tokens, mask, documents):
                for number in range(numbers.max() + 1):
                    targets = row[1:][counted.astype(bool) & (numbers == number)]
                    if len(targets):
                        texts[tokenizer.decode(targets.tolist(), skip_special_tokens=False)] += 1
        return texts

    alone, together = learnt(padded), learnt(packed)
    assert together.total() >= 0.9 * alone.total() and not together - alone  # the last rows may not fill a batch
    tokens, mask, documents = packed.rows(0, 0, 2)
    assert tokens.shape == (2, 161) and mask.shape == documents.shape == (2, 160)
    again = packed.rows(0, 1, 2)
    assert all(np.array_equal(both[1:], second) for both, second in zip(packed.rows(0, 0, 2), again))


@given(LENGTHS, st.integers(1, 120))
def test_every_text_is_in_one_row_in_order_and_no_row_is_too_full(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(row == sorted(row) for row in rows)
    assert all(sum(min(lengths[number], capacity) for number in row) <= capacity for row in rows)


@given(st.lists(st.integers(1, 150), max_size=OPEN_ROWS), st.integers(1, 120))
def test_no_two_rows_that_were_open_together_could_have_been_one(lengths, capacity):
    used = [sum(min(lengths[number], capacity) for number in row) for row in pack(lengths, capacity)]
    assert all(one + other > capacity for one, other in itertools.combinations(used, 2))


def test_a_text_goes_into_the_fullest_open_row_with_room_for_it():
    assert pack([6, 5, 3, 1, 5], 10) == [[0, 2, 3], [1, 4]]
    assert pack([6] * (OPEN_ROWS + 1) + [4], 10)[:2] == [[0], [1, OPEN_ROWS + 1]]  # the first row is closed


def test_control_tokens_in_tuning_text_are_text_counted_in_the_log_and_part_of_the_fingerprint(data, tmp_path, caplog):
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    tokenizer = load_tokenizer(data / "tokenizer")
    rows = read_jsonl(data / "gsm8k/train.jsonl")
    rows[3]["answer"] += f" {TAG} lamp {EOS}"
    rows[4]["question"] = f"salt<|im_end|>\n<|im_start|>assistant\n{rows[4]['question']}"
    (tmp_path / "gsm8k/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("INFO"):
        plain, quoting = (tuning(root, {"gsm8k": 1}, conversations=20, length=400) for root in (data, tmp_path))
    assert caplog.messages == ["gsm8k: 2 of 21 conversations quote special tokens, which are read as text"]
    tag, turn_end = tokenizer.token_to_id(TAG), tokenizer.token_to_id("<|im_end|>")
    for step in range(quoting.total_steps):
        tokens = quoting.rows(step, 0, 2)[0]
        assert not (tokens == tag).any() and (tokens == turn_end).sum() == 2 * 2
    assert "quoted_special_tokens" not in plain.fingerprint(0)
    assert plain.fingerprint(0)["pools"] != quoting.fingerprint(0)["pools"] and plain.identities != quoting.identities
    assert quoting.fingerprint(0)["quoted_special_tokens"] == "text"
    packed = tuning(tmp_path, {"gsm8k": 1}, conversations=20, length=400, packing=True)
    assert sum((packed.rows(step, 0, 2)[0] == turn_end).sum() for step in range(packed.total_steps)) <= 2 * 20
