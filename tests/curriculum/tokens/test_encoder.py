"""The fast encoder agrees with the tokenizer on any text, or leaves the work to it."""

import json
import os
import sys
from pathlib import Path

import pytest
from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from curricula.curriculum.tokens.encoder import Encoder
from curricula.curriculum.tokens.tokenizer import load_tokenizer, train_tokenizer

TEXTS = [
    "The lamp keeper mixes blue dye with water, and waits for 12 bells; it's  twice as good!",
    "Ein Bär läuft über die Straße. 漢字とかな 3.14159\n\n\tdef f(x):\n        return x**2  # “quoted”",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_tokenizer(TEXTS * 3, 420, folder)
    return both(folder)


def both(folder):
    """The tokenizer, and the encoders that must agree with it, with and without fastokens."""
    tokenizer, first = load_tokenizer(folder), Encoder(load_tokenizer(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "fastokens", None)
        second = Encoder(load_tokenizer(folder))
    assert first.is_fast and second.is_fast
    tokenizer.encode_special_tokens = True
    return tokenizer, first, second


@pytest.fixture(scope="module")
def smollm2(smollm2_folder):
    return both(smollm2_folder)


def encoded(pair, texts):
    """The ids of the texts by each encoder."""
    return [[ids.tolist() for ids in encoder.encode(texts)] for encoder in pair[1:]]


def expected(pair, texts):
    """The same, by the tokenizer, once for each encoder."""
    tokenizer, *encoders = pair
    return [[encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]] * len(encoders)


# The two could differ at spaces of all kinds before digits, letters, marks and the end.
pieces = st.sampled_from(
    ["a", "Be", "'s", "'", "12", "3", "²", "½", "Ⅷ", " ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\x85",
     "\x0b", ".", "!?", "_", "é", "e\u0301", "漢字", "한", "😀", "👍🏽", "\u200b", "\x04", "\x1d", "\x00", "\U00011de0",
     "\U0001e900", "\U000e0001", "<|endoftext|>", "<potentially_unsafe_content>", "the", "ther", " lamp"]
)  # fmt: skip


@examples(800)
@given(st.lists(st.one_of(st.lists(pieces, max_size=30).map("".join), st.text(max_size=60)), min_size=1, max_size=8))
@example([""])
@example(["!\x04!", "12  34 a  5", "a  \n", " \n 1"])
def test_any_text_of_a_trained_tokenizer(trained, texts):
    assert encoded(trained, texts) == expected(trained, texts)


@examples(400)
@given(st.lists(st.one_of(st.lists(pieces, max_size=30).map("".join), st.text(max_size=60)), min_size=1, max_size=8))
@example(["!\x04!", "12  34 a  5", "a  \n", " \n 1", "\U00011de0 \U00011de0"])
def test_any_text_of_smollm2s_tokenizer(smollm2, texts):
    assert encoded(smollm2, texts) == expected(smollm2, texts)


def test_a_million_spaces_are_encoded(smollm2):
    texts = ["a" + " " * 1_200_000 + "b", "c"]
    assert encoded(smollm2, texts) == expected(smollm2, texts)


def test_real_text_of_smollm2s_tokenizer(smollm2):
    root = Path(os.environ.get("CURRICULA_DATA") or "nowhere")
    if not (root / "gsm8k/train.jsonl").exists():
        pytest.skip("set CURRICULA_DATA to the folder of public datasets")
    rows = [json.loads(line) for line in (root / "gsm8k/train.jsonl").read_text().splitlines()[:1500]]
    texts = [f"{row['question']}\n{row['answer']}" for row in rows]
    assert encoded(smollm2, texts) == expected(smollm2, texts)


@pytest.mark.parametrize(
    "change", ["normalizer", "pieces", "digits", "more", "merge", "pairs", "unknown", "added", "ignore_merges", "byte_fallback"]
)
def test_a_tokenizer_of_another_kind_encodes_the_texts_itself(trained, change):
    content = json.loads(trained[0].to_str())
    if change in content["model"]:
        content["model"][change] = True
    if change in ("merge", "pairs"):
        vocab = content["model"]["vocab"]
        for text in ("qz", "zx", "qzx"):
            vocab[text] = len(vocab)
        content["model"]["merges"] = {
            "merge": [["z", "x"], ["q", "z"], ["qz", "x"]],  # "qzx" does not encode to its token, as "z" + "x" merges first
            "pairs": [["q", "z"], ["z", "x"], ["qz", "x"], ["q", "zx"]],  # "qzx" is formed by two pairs
        }[change]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if change == "normalizer":
        tokenizer.normalizer = normalizers.NFC()
    if change == "pieces":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if change in ("digits", "more"):  # numbers are one piece, or pieces are split once more
        steps = [pre_tokenizers.Digits(change == "more"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        more = [pre_tokenizers.Split("e", "isolated")] if change == "more" else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, *more])
    if change == "unknown":
        tokenizer.model = models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    if change == "added":
        tokenizer.add_tokens(["lamps"])
    encoder = Encoder(tokenizer)
    assert not encoder.is_fast
    texts = ["qzx the 12 lamps", "e\u0301 a"]
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in encoder.encode(texts)] == expected


@pytest.mark.parametrize("threads", ["0", "all", ""])
def test_a_number_of_threads_that_means_nothing_is_all_of_them(tmp_path, monkeypatch, threads):
    """As for the library that the variable belongs to."""
    train_tokenizer(TEXTS * 3, 420, tmp_path)
    monkeypatch.setenv("RAYON_NUM_THREADS", threads)
    pair = both(tmp_path)
    assert encoded(pair, TEXTS) == expected(pair, TEXTS)
