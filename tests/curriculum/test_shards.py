"""From documents to tokens on disk, read back by Megatron itself."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.config import Source
from curriculum.durable import read_jsonl
from curriculum.errors import UserError
from curriculum.indexed import Shard, TokenStream, write_shard
from curriculum.shards import Job, source_shards, tokenize_source
from curriculum.tags import insert_tags
from curriculum.tokenizer import EOS, TAG, load_tokenizer, train_tokenizer

WORDS = ["the", "lamp", "keeper", "mixes", "blue", "dye", "with", "water", "and", "waits", "for", "bell", "twice"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A local dataset folder and a tokenizer trained on it."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(5, 40))) for _ in range(300)]
    for folder, count in (("fineweb_annotated/score_0", 300), ("fineweb_annotated/score_3", 60)):
        path = root / f"{folder}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps({"id": f"d{n}", "text": texts[n]}) + "\n" for n in range(count)))
    for score in (4, 5):
        (root / f"fineweb_annotated/score_{score}.jsonl").write_text(
            json.dumps({"id": f"s{score}", "text": "the lamp"}) + "\n"
        )
    train_tokenizer(texts, 400, root / "tokenizer")
    return root


def job(root, out, **changes):
    source = Source(**{"dataset": "fineweb-edu", "shards": 3, **changes})
    return Job("web", source, root / "tokenizer", out / "web", root, seed=1, validation_documents=10)


def test_megatron_reads_the_shards_and_finds_the_documents(root, tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokenize_source(job(root, tmp_path))
    tokenizer = load_tokenizer(root / "tokenizer")
    end = tokenizer.token_to_id(EOS)
    found = []
    for prefix in [*source_shards(tmp_path / "web"), tmp_path / "web" / "validation"]:
        dataset = IndexedDataset(str(prefix))
        ours = Shard.open(prefix)
        assert np.array_equal(dataset.sequence_lengths, ours.lengths)
        assert np.array_equal(np.concatenate([dataset[n] for n in range(len(dataset))]), ours.tokens)
        assert all(dataset[n][-1] == end for n in range(len(dataset)))
        found += [tokenizer.decode(dataset[n][:-1].tolist()) for n in range(len(dataset))]
    written = [row["text"] for row in read_jsonl(root / "fineweb_annotated/score_0.jsonl")]
    assert sorted(found) == sorted(written)


def test_a_finished_shard_is_not_redone_and_an_unfinished_one_is(root, tmp_path):
    tokenize_source(job(root, tmp_path))
    first, second = (tmp_path / "web" / name for name in ("00000.bin", "00001.bin"))
    before, content = first.stat().st_mtime_ns, second.read_bytes()
    (tmp_path / "web" / "00001.json").unlink()  # as a kill before the manifest leaves it
    second.write_bytes(b"half")
    tokenize_source(job(root, tmp_path))
    assert first.stat().st_mtime_ns == before
    assert second.read_bytes() == content


def test_shards_made_otherwise_are_refused_by_name(root, tmp_path):
    tokenize_source(job(root, tmp_path))
    with pytest.raises(UserError, match=r"00000.json|validation.json.*tag_rate 0.0, now it is 0.05"):
        tokenize_source(job(root, tmp_path, tag_rate=0.05))


def test_a_source_without_documents_is_named(root, tmp_path):
    (tmp_path / "fineweb_annotated").mkdir()
    (tmp_path / "fineweb_annotated/score_0.jsonl").write_text("")
    empty = Job("web", Source(dataset="fineweb-edu"), root / "tokenizer", tmp_path / "web", tmp_path, 1, 10)
    with pytest.raises(UserError, match="source web: dataset fineweb-edu has 0 documents"):
        tokenize_source(empty)
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": null}', "the text of row 0 is None"),
        ('{"text": ["x"]}', "the text of row 0 is"),
        ('{"text": "\\ud800"}', "the text of row 0 is"),
        ("[1]", r"row 0 is \[1\]"),
        ('{"txt": "x"}', "row 0 has no column 'text', only"),
        ('{"text": "x"', "a line is not JSON"),
    ],
)
def test_a_row_that_is_no_document_is_named(root, tmp_path, line, said):
    (tmp_path / "fineweb_annotated").mkdir()
    (tmp_path / "fineweb_annotated/score_0.jsonl").write_text(line + "\n")
    bad = Job("web", Source(dataset="fineweb-edu"), root / "tokenizer", tmp_path / "web", tmp_path, 1, 0)
    with pytest.raises(UserError, match=said):
        tokenize_source(bad)


def test_tags_come_at_their_rate_never_first_and_leave_the_text(root, tmp_path):
    tokenize_source(job(root, tmp_path, dataset="fineweb-unsafe", tag_rate=0.2, shards=1))
    tokenizer = load_tokenizer(root / "tokenizer")
    tag = tokenizer.token_to_id(TAG)
    shard = Shard.open(source_shards(tmp_path / "web")[0])
    starts = np.concatenate([[0], np.cumsum(shard.lengths)[:-1]])
    assert not np.any(shard.tokens[starts] == tag)
    plain = shard.tokens[shard.tokens != tag]
    positions = len(plain) - 2 * len(shard.lengths)  # neither the first token nor the end of document
    assert abs(np.sum(shard.tokens == tag) / positions - 0.2) < 0.04


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(4, 100), max_size=60), st.floats(0, 0.9), st.integers())
def test_taking_the_tags_out_gives_the_tokens_back(tokens, rate, key):
    tagged = insert_tags(np.array(tokens, np.int64), 3, rate, key)
    assert tagged[tagged != 3].tolist() == tokens
    assert not len(tagged) or tagged[0] != 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=30), min_size=1, max_size=12),
    st.integers(1, 9),
    st.data(),
)
def test_samples_tile_the_token_stream_across_shards(tmp_path_factory, documents, length, data):
    folder = tmp_path_factory.mktemp("stream")
    cut = data.draw(st.integers(0, len(documents)))
    for name, part in (("0", documents[:cut]), ("1", documents[cut:])):
        write_shard(folder / name, [np.array(document) for document in part])
    stream = TokenStream([folder / "0", folder / "1"], length)
    whole = [token for document in documents for token in document]
    assert stream.samples == max(0, (len(whole) - 1) // length)
    for number in range(stream.samples):
        assert stream.sample(number).tolist() == whole[number * length : number * length + length + 1]


@pytest.mark.parametrize(
    ("suffix", "damage", "said"),
    [
        (".bin", lambda raw: raw[:-2], "bytes where its index says"),
        (".idx", lambda raw: b"XX" + raw[2:], "not a Megatron index"),
        (".idx", lambda raw: raw[:-1], "do not hold its"),
        (".idx", lambda raw: raw[:9], "not a Megatron index"),
        (".idx", lambda raw: raw[:17] + b"\x04" + raw[18:], "dtype code 4"),
    ],
)
def test_a_damaged_shard_is_refused_with_its_file_and_the_mend(tmp_path, suffix, damage, said):
    write_shard(tmp_path / "s", [np.arange(5), np.arange(3)])
    path = (tmp_path / "s").with_suffix(suffix)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=said) as caught:
        Shard.open(tmp_path / "s")
    assert str(path) in str(caught.value) and "tokenize" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_in_an_index_crash_the_reader(tmp_path_factory, raw):
    prefix = tmp_path_factory.mktemp("fuzz") / "s"
    prefix.with_suffix(".idx").write_bytes(b"MMIDIDX\x00\x00" + raw)
    prefix.with_suffix(".bin").write_bytes(b"\x00" * 8)
    with contextlib.suppress(UserError):
        shard = Shard.open(prefix)
        assert len(shard.tokens) == 4 == shard.lengths.sum() and (shard.lengths >= 0).all()
