"""From documents to tokens on disk: the same for any number of shards, and readable by Megatron itself."""

import json
import multiprocessing
import os
import re
import signal
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from shard_folders import tokenize_source

from curricula.curriculum.config import Source
from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.tokens import tokenize
from curricula.curriculum.tokens.shards import Shard, read_manifest, source_shards
from curricula.curriculum.tokens.tokenize import NAMES, ROLES, Tokenization, insert_tags, name_speakers, tokenize_shard
from curricula.curriculum.tokens.tokenizer import EOS, TAG, load_tokenizer, train_tokenizer
from curricula.durable import read_jsonl
from curricula.errors import UserError
from curricula.randomness import keyed_rng

WORDS = ["the", "lamp", "keeper", "mixes", "blue", "dye", "with", "water", "and", "waits", "for", "bell", "twice"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A local dataset folder and a tokenizer trained on it."""
    root = tmp_path_factory.mktemp("root")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(5, 40))) for _ in range(300)]
    for file, count in (("fineweb_annotated/score_0", 300), ("fineweb_annotated/score_3", 60)):
        write_rows(root, file, [{"id": f"d{n}", "text": texts[n]} for n in range(count)])
    for score in (4, 5):
        write_rows(root, f"fineweb_annotated/score_{score}", [{"id": f"s{score}", "text": "the lamp"}])
    dialogues = [f"User: {texts[n]}\nAssistant: no\nUser: {texts[n + 40]}\n" for n in range(40)]
    write_rows(root, "refuseweb/train", [{"id": f"r{n}", "text": text} for n, text in enumerate(dialogues)])
    train_tokenizer(texts, 400, root / "tokenizer")
    return root


def write_rows(root, stem, rows):
    path = root / f"{stem}.jsonl"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def web(root, out, data=None, validation=10, **changes):
    """The source `web`, to be tokenised into `out`/web."""
    return Tokenization(
        name="web",
        source=Source(**{"dataset": "fineweb-edu", "shards": 3, **changes}),
        tokenizer=root / "tokenizer",
        folder=out / "web",
        data_root=data or root,
        seed=1,
        validation_documents=validation,
    )


def documents_of(prefix):
    shard = Shard.open(prefix)
    shard.check()
    return np.split(np.array(shard.tokens), np.cumsum(shard.lengths)[:-1]) if len(shard.lengths) else []


def test_megatron_reads_the_shards_and_finds_the_documents(root, tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    tokenize_source(web(root, tmp_path))
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
    assert found != written


@pytest.mark.parametrize(
    "changes", [{}, {"dataset": "fineweb-unsafe", "tag_rate": 0.2}, {"dataset": "refuseweb"}], ids=["safe", "tags", "names"]
)
def test_any_sharding_gives_the_same_tokens(root, tmp_path, changes):
    whole = web(root, tmp_path / "1", shards=1, **changes)
    cut = web(root, tmp_path / "7", shards=7, **changes)
    for work in (whole, cut):
        tokenize_source(work)
    counted = [
        Counter(document.tobytes() for prefix in source_shards(work.folder) for document in documents_of(prefix))
        for work in (whole, cut)
    ]
    assert counted[0] == counted[1] and counted[0].total() > 20
    assert (whole.folder / "validation.bin").read_bytes() == (cut.folder / "validation.bin").read_bytes()


def test_the_same_text_in_any_format_gives_the_same_shards(root, tmp_path):
    rows = read_jsonl(root / "fineweb_annotated/score_0.jsonl")
    folder = tmp_path / "data/fineweb_annotated/score_0"
    folder.mkdir(parents=True)
    for number, some in enumerate((rows[:120], rows[120:])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"{number}.parquet", row_group_size=50)
    for out, data in (("jsonl", root), ("parquet", tmp_path / "data")):
        tokenize_source(web(root, tmp_path / out, data))
    for name in ("validation", "00000", "00001", "00002"):
        one, other = (tmp_path / out / "web" / f"{name}.bin" for out in ("jsonl", "parquet"))
        assert one.read_bytes() == other.read_bytes()


def test_a_finished_shard_is_kept_and_an_unfinished_one_is_made_again(root, tmp_path):
    tokenize_source(web(root, tmp_path))
    first, second = (tmp_path / "web" / name for name in ("00000.bin", "00001.bin"))
    before, content = first.stat().st_mtime_ns, second.read_bytes()
    (tmp_path / "web" / "00001.json").unlink()  # as a kill before the manifest would leave it
    second.write_bytes(b"half")
    (tmp_path / "web" / "00002.bin").unlink()
    tokenize_source(web(root, tmp_path))
    assert first.stat().st_mtime_ns == before
    assert second.read_bytes() == content
    assert sorted(path.suffix for path in (tmp_path / "web").iterdir()) == [".bin"] * 4 + [".idx"] * 4 + [".json"] * 4


@pytest.mark.parametrize("shard", ["validation", "00001"])
def test_a_kill_while_documents_are_tokenised_leaves_nothing(root, tmp_path, monkeypatch, shard):
    monkeypatch.setattr(tokenize, "_write_shuffled", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    child = multiprocessing.get_context("fork").Process(target=tokenize_shard, args=(web(root, tmp_path), shard))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and list((tmp_path / "web").iterdir()) == []


def test_a_source_with_a_shard_missing_is_not_read(root, tmp_path):
    for name in ("00000", "00002"):
        tokenize_shard(web(root, tmp_path), name)
    with pytest.raises(UserError, match="2 of 3 shards are finished; run `curricula data tokenize`"):
        source_shards(tmp_path / "web")


def test_a_source_of_fewer_documents_than_its_shards_and_validation_need_is_refused(root, tmp_path):
    said = (
        "source web: .* has 300 documents, too few for 291 shards and 10 validation documents; add documents or ask for fewer"
    )
    with pytest.raises(UserError, match=said):
        tokenize_shard(web(root, tmp_path, shards=291), "00000")
    assert not (tmp_path / "web").exists()
    tokenize_shard(web(root, tmp_path, shards=290), "00000")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tag_rate": 0.05}, "tag_rate 0.0, now it is 0.05"),
        ({"documents": 200}, "source_documents 300, now it is 200"),
        ({"shards": 2}, "shards 3, now it is 2"),
    ],
)
def test_shards_made_with_other_settings_are_refused_naming_the_setting(root, tmp_path, changes, said):
    tokenize_source(web(root, tmp_path))
    with pytest.raises(UserError, match=rf"validation.json: was made with {said}; delete"):
        tokenize_source(web(root, tmp_path, **changes))


@pytest.mark.parametrize(("key", "value"), [("text", "body"), ("id", "body"), ("min_score", 4.5), ("max_score", 99.0)])
def test_shards_made_of_as_many_other_texts_of_a_table_are_refused_naming_the_key(root, tmp_path, key, value):
    write_rows(tmp_path, "own", [{"id": f"d{n}", "text": "the lamp", "body": "the bell", "safety": n} for n in range(20)])
    own = {"dataset": None, "path": str(tmp_path / "own.jsonl"), "score": "safety", "min_score": 5.0, "shards": 1}
    tokenize_shard(web(root, tmp_path, validation=0, **own), "00000")
    with pytest.raises(UserError, match=f"00000.json: was made with {key} .*, now it is {value!r}; delete"):
        tokenize_shard(web(root, tmp_path, validation=0, **own | {key: value}), "00000")


def test_a_shard_that_lost_a_file_is_not_made_from_something_else(root, tmp_path):
    """A kill before the new manifest would leave the new tokens, as many as before, under the old one."""
    work = web(root, tmp_path, validation=0, shards=1)
    tokenize_shard(work, "00000")
    (tmp_path / "web/00000.bin").unlink()
    with pytest.raises(UserError, match="00000.json: was made with seed 1, now it is 2; delete"):
        tokenize_shard(replace(work, seed=2), "00000")
    assert not (tmp_path / "web/00000.bin").exists()


@pytest.mark.parametrize("changes", [{}, {"documents": 30}])
def test_a_manifest_records_only_what_its_source_has(root, tmp_path, changes):
    """One more key, and a later version would refuse the finished shards of all users."""
    tokenize_shard(web(root, tmp_path, **changes), "00000")
    assert set(read_manifest(tmp_path / "web/00000")) == {
        "source", "dataset", "parts", "source_documents", "source_files", "tag_rate", "named_speakers", "shards",
        "validation_documents", "seed", "tokenizer", "documents", "tokens", "tags", "largest_id", "sha256", "empty_documents",
        "not_utf8_documents",
    }  # fmt: skip


def test_an_id_that_the_tokens_of_a_shard_cannot_hold_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenize, "LARGEST_VOCABULARY", 399)
    with pytest.raises(UserError, match="tokenizer: has an id 399, but shards hold 16-bit tokens, below 399"):
        tokenize_shard(web(root, tmp_path), "00000")


def test_shards_of_other_data_with_as_many_rows_are_refused(root, tmp_path):
    rows = read_jsonl(root / "fineweb_annotated/score_0.jsonl")
    write_rows(tmp_path, "fineweb_annotated/score_0", rows)
    tokenize_shard(web(root, tmp_path, tmp_path), "00000")
    write_rows(tmp_path, "fineweb_annotated/score_0", rows[::-1])
    for shard in ("00000", "00001"):  # also one that is yet to be made
        with pytest.raises(UserError, match="00000.json: was made with source_files '.*, now it is '.*; delete"):
            tokenize_shard(web(root, tmp_path, tmp_path), shard)


@pytest.mark.parametrize("damage", ["", "[]", "{"])
def test_a_damaged_manifest_stops_no_other_shard_and_its_own_shard_is_made_again(root, tmp_path, damage):
    tokenize_source(web(root, tmp_path))
    path = tmp_path / "web/00000.json"
    whole, other = path.read_text(), tmp_path / "web/00002.json"
    path.write_text(damage)
    other.unlink()
    tokenize_shard(web(root, tmp_path), "00002")
    other.unlink()
    with pytest.raises(UserError, match="00001.json: was made with tag_rate 0.0, now"):
        tokenize_shard(web(root, tmp_path, tag_rate=0.05), "00002")
    tokenize_shard(web(root, tmp_path), "00000")
    assert path.read_text() == whole


def test_sources_of_one_dataset_hold_out_the_same_documents(root, tmp_path):
    works = [
        replace(web(root, tmp_path, tag_rate=rate), name=name, folder=tmp_path / name) for name, rate in (("a", 0), ("b", 0.1))
    ]
    for work in works:
        tokenize_source(work)
    tag = load_tokenizer(root / "tokenizer").token_to_id(TAG)
    held_out = [sorted(d[d != tag].tobytes() for d in documents_of(work.folder / "validation")) for work in works]
    assert held_out[0] == held_out[1]


def test_a_document_id_need_not_be_valid_unicode(root, tmp_path):
    write_rows(tmp_path, "fineweb_annotated/score_3", [{"id": "\ud800", "text": "the lamp the lamp"}])
    for score in (4, 5):
        write_rows(tmp_path, f"fineweb_annotated/score_{score}", [])
    work = web(root, tmp_path, tmp_path, validation=0, shards=1, dataset="fineweb-unsafe", tag_rate=0.5)
    tokenize_source(work)
    assert read_manifest(work.folder / "00000")["documents"] == 1


def test_shards_of_another_tokenizer_are_refused(root, tmp_path):
    tokenize_source(web(root, tmp_path))
    train_tokenizer(["other text"], 300, tmp_path / "tokenizer")
    other = replace(web(root, tmp_path), tokenizer=tmp_path / "tokenizer")
    with pytest.raises(UserError, match="validation.json: was made with tokenizer '.*, now it is '.*; delete"):
        tokenize_source(other)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": ["x"]}', r"score_0.jsonl: line 1 of dataset fineweb-edu has \['x'\] as its text"),
        ("[1]", r"line 1 is \[1\]"),
        ('{"txt": "x"}', "line 1 of dataset fineweb-edu has no column 'text'; add it"),
        ('{"text": "x"', "line 1 is not JSON"),
    ],
)
def test_a_row_that_is_not_a_document_is_named(root, tmp_path, line, said):
    (tmp_path / "fineweb_annotated").mkdir()
    (tmp_path / "fineweb_annotated/score_0.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=said):
        tokenize_source(web(root, tmp_path, tmp_path, validation=0, shards=1))
    assert not list((tmp_path / "web").glob("*0000*"))


def test_odd_documents_are_skipped_and_counted_in_the_manifest(root, tmp_path):
    (tmp_path / "fineweb_annotated").mkdir()
    lines = [b'{"text": "the lamp"}', b'{"text": ""}', b'{"text": null}', b'{"text": "\\ud800"}', b'{"text": "\xff"}']
    (tmp_path / "fineweb_annotated/score_0.jsonl").write_bytes(b"\n".join(lines) + b"\n\n")
    work = web(root, tmp_path, tmp_path, validation=0, shards=1)
    tokenize_source(work)
    manifest = read_manifest(work.folder / "00000")
    counts = {name: manifest[name] for name in ("documents", "empty_documents", "not_utf8_documents")}
    assert counts == {"documents": 1, "empty_documents": 2, "not_utf8_documents": 2}
    assert manifest["tokens"] == len(documents_of(work.folder / "00000")[0])


def test_odd_documents_of_a_parquet_file_are_counted_too(root, tmp_path):
    folder = tmp_path / "fineweb_annotated"
    folder.mkdir()
    broken = pa.array([b"the lamp", b"\xff\xfe", b""], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": broken}), folder / "score_0.parquet")
    work = web(root, tmp_path, tmp_path, validation=0, shards=1)
    tokenize_source(work)
    manifest = read_manifest(work.folder / "00000")
    assert (manifest["documents"], manifest["empty_documents"], manifest["not_utf8_documents"]) == (1, 1, 1)


def test_a_document_of_three_megabytes_is_one_document(root, tmp_path):
    text = " ".join(np.random.default_rng(0).choice(WORDS, size=650_000))
    assert len(text) > 3e6
    write_rows(tmp_path, "fineweb_annotated/score_0", [{"text": text}, {"text": "the lamp"}])
    work = web(root, tmp_path, tmp_path, validation=0, shards=1)
    tokenize_source(work)
    lengths = sorted(Shard.open(work.folder / "00000").lengths.tolist())
    assert lengths[0] < 10 and lengths[1] > 300_000
    longest = max(documents_of(work.folder / "00000"), key=len)
    assert load_tokenizer(root / "tokenizer").decode(longest[:-1].tolist()) == text


def test_long_documents_are_encoded_one_at_a_time(root, tmp_path, monkeypatch):
    """However many books a shard has, its process needs the memory of one."""
    write_rows(tmp_path, "fineweb_annotated/score_0", [{"id": f"d{n}", "text": "lamp " * 250_000} for n in range(3)])
    together = []

    def encode(encoder, texts):
        together.append(len(texts))
        return [np.array([5]) for _ in texts]

    monkeypatch.setattr(tokenize.Encoder, "encode", encode)
    tokenize_shard(web(root, tmp_path / "out", tmp_path, validation=0, shards=1), "00000")
    assert together == [1, 1, 1]


def test_speakers_get_names_that_depend_on_the_document_alone(root, tmp_path):
    work = web(root, tmp_path, dataset="refuseweb", shards=2)
    tokenize_source(work)
    tokenizer = load_tokenizer(root / "tokenizer")
    seen = set()
    for document in (document for prefix in source_shards(work.folder) for document in documents_of(prefix)):
        lines = tokenizer.decode(document[:-1].tolist()).splitlines()
        first, second, third = (line.split(":")[0] for line in lines)
        assert first == third != second
        assert not {"User", "Assistant"} & {first, second}
        seen.add((first, second))
    assert len(seen) > 10
    plain = web(root, tmp_path / "plain", dataset="refuseweb", name_speakers=False)
    tokenize_source(plain)
    assert tokenizer.decode(documents_of(plain.folder / "00000")[0].tolist()).startswith("User:")


@pytest.mark.parametrize(
    ("user", "assistant"),
    [
        ("USER:", "ASSISTANT:"), ("Human:", "Assistant:"), ("Human:", "AI:"), ("### User:", "### Assistant:"),
        ("- User:", "- Assistant:"), ("User 1:", "Assistant :"), ("**User 2**:", "**Assistant:**"), ("> User:", "Assistant:"),
    ],
)  # fmt: skip
def test_both_speakers_are_named_in_whichever_form_they_stand(user, assistant):
    text = f"{user} May I?\n{assistant} No.\n\n{user} Why?\n{assistant} The User: see above. Human: no.\n"
    named, speakers = name_speakers(text, 1, "d")
    reference, _ = name_speakers("User:\nAssistant:\n", 1, "d")
    asks, answers = (line.rstrip(":") for line in reference.splitlines())
    word, other = (re.sub("[^A-Za-z]", "", label) for label in (user, assistant))
    assert speakers == "named"
    expected = text.replace(user, user.replace(word, asks)).replace(assistant, assistant.replace(other, answers))
    assert named == expected.replace(f"The {asks}:", "The User:").replace(f" {asks}: no", " Human: no")


@pytest.mark.parametrize(
    ("text", "speakers"),
    [
        ("User: May I?\nModel: No.\n", "one_side"),
        ("Q: May I?\nAssistant: No.\n", "one_side"),
        ("The user: a lamp.\nUsers: many\nUser\n", "none"),
    ],
)
def test_a_dialogue_of_which_one_side_is_unknown_keeps_both(text, speakers):
    assert name_speakers(text, 1, "d") == (text, speakers)


@given(st.lists(st.sampled_from(["User: ", "Assistant: ", "  **User:** ", "**Assistant** : ", "said User: ", "Users: "])),
       st.integers(0, 99))  # fmt: skip
def test_dialogues_in_the_plain_form_have_the_names_they_always_had(labels, key):
    """The pattern and the draws of the first version, which runs in progress began with."""
    pattern = re.compile(r"^(?P<indent>[ \t]*\**)(?P<speaker>User|Assistant)(?=\**[ \t]*:)", re.MULTILINE)
    text = "".join(f"{label}the lamp\n" for label in ["User: ", "Assistant: ", *labels])
    rng = keyed_rng(key, "d")
    if rng.random() < 0.5:
        asks, answers = (NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False))
    else:
        asks, answers = ROLES[rng.integers(len(ROLES))]
    names = {"User": asks, "Assistant": answers}
    expected = pattern.sub(lambda found: found["indent"] + names[found["speaker"]], text)
    assert name_speakers(text, key, "d") == (expected, "named")


def test_the_manifest_counts_dialogues_by_what_became_of_their_speakers(root, tmp_path):
    texts = ["User: a\nAssistant: b\n"] * 5 + ["USER: a\nASSISTANT: b\n"] * 3 + ["User: a\nBot: b\n"] * 2 + ["a lamp"]
    write_rows(tmp_path, "refuseweb/train", [{"id": f"r{n}", "text": text} for n, text in enumerate(texts)])
    work = web(root, tmp_path / "out", tmp_path, validation=0, dataset="refuseweb", shards=1)
    tokenize_source(work)
    manifest = read_manifest(work.folder / "00000")
    assert [manifest[f"speakers_{kind}"] for kind in ("named", "one_side", "none")] == [8, 2, 1]
    tokenize_source(web(root, tmp_path / "safe", shards=1))
    assert "speakers_named" not in read_manifest(tmp_path / "safe/web/00000")


def test_tags_come_at_their_rate_never_first_and_leave_the_text(root, tmp_path):
    work = web(root, tmp_path, dataset="fineweb-unsafe", tag_rate=0.2, shards=1)
    tokenize_source(work)
    tag = load_tokenizer(root / "tokenizer").token_to_id(TAG)
    shard = Shard.open(source_shards(work.folder)[0])
    starts = np.concatenate([[0], np.cumsum(shard.lengths)[:-1]])
    assert not np.any(shard.tokens[starts] == tag)
    plain = shard.tokens[shard.tokens != tag]
    positions = len(plain) - 2 * len(shard.lengths)  # neither the first token nor the end of document
    assert abs(np.sum(shard.tokens == tag) / positions - 0.2) < 0.04
    assert read_manifest(source_shards(work.folder)[0])["tags"] == np.sum(shard.tokens == tag)


@examples(100)
@given(st.lists(st.integers(4, 100), max_size=60), st.floats(0, 0.9), st.integers())
def test_taking_the_tags_out_gives_the_tokens_back(tokens, rate, key):
    tagged = insert_tags(np.array(tokens, np.int64), 3, rate, key)
    assert tagged[tagged != 3].tolist() == tokens
    assert not len(tagged) or tagged[0] != 3


@pytest.fixture(scope="module")
def scores(tmp_path_factory, root):
    """Three parts of 700, 500 and 300 documents, whose ids begin with their scores."""
    data = tmp_path_factory.mktemp("scores")
    for score, count in ((3, 700), (4, 500), (5, 300)):
        rows = [{"id": f"{score}-{n}", "text": f"lamp {score} {n}"} for n in range(count)]
        write_rows(data, f"fineweb_annotated/score_{score}", rows)
    return data


def test_a_limit_keeps_the_proportions_of_the_parts(scores):
    for limit, expected in ((600, (280, 200, 120)), (7, (3, 2, 2)), (1500, (700, 500, 300)), (9999, (700, 500, 300))):
        documents = Documents.open("fineweb-unsafe", scores, (), limit)
        ids = [document.id for document in documents.read()]
        counts = Counter(name[0] for name in ids)
        assert tuple(counts[score] for score in "345") == expected and len(documents) == len(ids) == sum(expected)
        assert ids == [f"{score}-{n}" for score, count in zip("345", expected) for n in range(count)]
        numbers = list(range(0, len(ids), 2))
        assert [item.id for item in documents.select(numbers)] == ids[::2]
        assert [item.number for item in documents.select(numbers)] == numbers
        cuts = [0, len(ids) // 3, len(ids) // 2, len(ids)]
        pieces = [item for start, stop in zip(cuts, cuts[1:]) for item in documents.read(start, stop)]
        assert [item.id for item in pieces] == ids and [item.number for item in pieces] == list(range(len(ids)))


def test_one_part_is_read_from_its_beginning(scores):
    documents = Documents.open("fineweb-unsafe", scores, ("score_4",), 60)
    assert [item.id for item in documents.read()] == [f"4-{n}" for n in range(60)]


def test_parts_that_were_fetched_up_to_some_row_count_as_what_the_hub_has(tmp_path):
    for score, hub in ((3, 7000), (4, 2000), (5, 1000)):
        write_rows(tmp_path, f"fineweb_annotated/score_{score}/0", [{"id": f"{score}", "text": "x"}] * 100)
        record = dict(hub="h", config=None, split="train", asked=None, columns=[], constants={}, limit=100, revision="r",
                      licence="", files=1, rows=100, rows_of={}, complete=True, upstream_rows=hub)  # fmt: skip
        (tmp_path / f"fineweb_annotated/score_{score}/.fetched.json").write_text(json.dumps(record))
    assert Documents.open("fineweb-unsafe", tmp_path, (), 100).counts == [70, 20, 10]
    assert Documents.open("fineweb-unsafe", tmp_path, (), 200).counts == [100, 40, 20]  # no rows of the next part


def test_shards_that_were_made_of_the_first_part_alone_are_refused(root, scores, tmp_path):
    work = web(root, tmp_path, scores, dataset="fineweb-unsafe", documents=600)
    tokenize_source(work)
    path = tmp_path / "web/00000.json"
    manifest = json.loads(path.read_text())
    assert manifest["documents_of_parts"] == [280, 200, 120]
    del manifest["documents_of_parts"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="was made with documents_of_parts null, now it is"):
        tokenize_shard(work, "00000")
