"""Shard files: ours and Megatron's, whole and damaged."""

import contextlib

import numpy as np
import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from curricula.curriculum.tokens.shards import HEADER, Shard, TokenStream, manifest_path, whole_manifest, write_shard
from curricula.durable import write_json
from curricula.errors import StorageError, UserError


def sample(stream, number):
    out = np.empty(stream.sequence_length + 1, np.int64)
    stream.read(number, out)
    return out.tolist()


@examples(60)
@given(
    st.lists(st.lists(st.integers(0, 65535), min_size=1, max_size=30), min_size=1, max_size=12), st.integers(1, 9), st.data()
)
def test_samples_tile_the_token_stream_across_shards(tmp_path_factory, documents, length, data):
    folder = tmp_path_factory.mktemp("stream")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(documents)), max_size=3)))
    shards = np.split(np.arange(len(documents)), cuts)
    for name, numbers in enumerate(shards):
        write_shard(folder / f"{name}", [np.array(documents[number]) for number in numbers])
    stream = TokenStream([folder / f"{name}" for name in range(len(shards))], length)
    whole = [token for document in documents for token in document]
    assert stream.samples == max(0, (len(whole) - 1) // length)
    for number in range(stream.samples):
        assert sample(stream, number) == whole[number * length : number * length + length + 1]
        prefix, place = stream.locate(number)
        assert Shard.open(prefix).tokens[place] == whole[number * length]


@pytest.mark.parametrize("number", [-1, 3])
def test_a_sample_outside_of_the_stream_is_refused(tmp_path, number):
    write_shard(tmp_path / "s", [np.arange(13)])  # of which three samples are whole, if one token is shared
    stream = TokenStream([tmp_path / "s"], 4)
    with pytest.raises(IndexError, match=f"sample {number} of 3"):
        sample(stream, number)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint8])
def test_we_read_what_megatron_writes(tmp_path, dtype):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "s.bin"), dtype=dtype)
    builder.add_document(torch.tensor([1, 2, 3, 4, 5, 6]), [2, 1, 3])  # one document of three sequences
    builder.add_item(torch.tensor([7, 8]))
    builder.add_item(torch.tensor([9]))
    builder.end_document()
    builder.finalize(str(tmp_path / "s.idx"))
    shard = Shard.open(tmp_path / "s")
    shard.check()
    assert shard.tokens.tolist() == list(range(1, 10)) and shard.tokens.dtype == dtype
    assert (shard.sequences, shard.lengths.tolist()) == (5, [6, 3])
    assert sample(TokenStream([tmp_path / "s"], 4), 1) == [5, 6, 7, 8, 9]


def test_we_read_what_megatron_merges_from_shards_of_ours(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    write_shard(tmp_path / "a", [np.array([1, 2]), np.array([3])])
    write_shard(tmp_path / "b", [np.array([4, 5, 6])])
    builder = IndexedDatasetBuilder(str(tmp_path / "ab.bin"), dtype=np.uint16)
    for name in "ab":
        builder.add_index(str(tmp_path / name))
    builder.finalize(str(tmp_path / "ab.idx"))
    merged = Shard.open(tmp_path / "ab")
    merged.check()
    assert merged.tokens.tolist() == [1, 2, 3, 4, 5, 6] and merged.lengths.tolist() == [2, 1, 3]


def test_shards_of_different_integer_types_can_share_a_stream(tmp_path):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    write_shard(tmp_path / "a", [np.array([1, 2, 65535])])
    builder = IndexedDatasetBuilder(str(tmp_path / "b.bin"), dtype=np.int32)
    builder.add_document(torch.tensor([100_000, 4]), [2])
    builder.finalize(str(tmp_path / "b.idx"))
    assert sample(TokenStream([tmp_path / "a", tmp_path / "b"], 4), 0) == [1, 2, 65535, 100_000, 4]


@pytest.mark.parametrize(
    ("suffix", "damage", "said"),
    [
        (".bin", lambda raw: raw[:-2], "14 bytes, but its index says 16"),
        (".bin", lambda raw: b"", "0 bytes, but its index says 16"),
        (".idx", lambda raw: b"XX" + raw[2:], "not a Megatron index"),
        (".idx", lambda raw: raw[:-1], "do not hold its"),
        (".idx", lambda raw: raw[:9], "not a Megatron index"),
        (".idx", lambda raw: b"", "not a Megatron index"),
        (".idx", lambda raw: raw[:17] + b"\x07" + raw[18:], "dtype code 7"),
        (".idx", lambda raw: raw[:9] + b"\x02" + raw[10:], "version 2"),
        (".idx", lambda raw: raw[:34] + b"\xff\xff\xff\xff" + raw[38:], "sequences do not follow one another"),
        (".idx", lambda raw: raw[:42] + b"\x01" + raw[43:], "sequences do not follow one another"),
        (".idx", lambda raw: raw[:-24] + b"\x01" + raw[-23:], "documents do not cover its sequences in order"),
        (".idx", lambda raw: raw[:-8] + b"\x01" + raw[-7:], "documents do not cover its sequences in order"),
    ],
)
def test_a_damaged_shard_is_refused_naming_the_file_and_the_remedy(tmp_path, suffix, damage, said):
    write_shard(tmp_path / "s", [np.arange(5), np.arange(3)])
    path = (tmp_path / "s").with_suffix(suffix)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=said) as caught:
        Shard.open(tmp_path / "s").check()
    assert str(path) in str(caught.value) and "tokenize" in str(caught.value)


@pytest.mark.parametrize("suffix", [".json", ".idx", ".bin"])
def test_a_shard_that_cannot_be_read_now_is_not_lost(tmp_path, suffix):
    """Another start may read it: nothing is tokenised again, and no training ends for good."""
    write_shard(tmp_path / "s", [np.arange(5)])
    write_json(manifest_path(tmp_path / "s"), {"shards": 1, "tokens": 5, "sha256": "", "tokenizer": ""})
    assert whole_manifest(tmp_path / "s")
    path = (tmp_path / "s").with_suffix(suffix)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(StorageError, match=f"{path}: cannot be read"):
        whole_manifest(tmp_path / "s")


@examples(400)
@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3), st.sampled_from([1, 3, 4, 5, 8, 9]))
def test_no_bytes_in_an_index_crash_the_reader(tmp_path_factory, raw, sequences, boundaries, code):
    """Arbitrary bytes, and arbitrary bytes after a header that fits their number."""
    prefix = tmp_path_factory.mktemp("fuzz") / "s"
    fitting = raw[: 12 * sequences + 8 * boundaries].ljust(12 * sequences + 8 * boundaries, b"\0")
    for content in (b"MMIDIDX\x00\x00" + raw, HEADER.pack(b"MMIDIDX\0\0", 1, code, sequences, boundaries) + fitting):
        prefix.with_suffix(".idx").write_bytes(content)
        prefix.with_suffix(".bin").write_bytes(b"\x00" * 8)
        with contextlib.suppress(UserError):
            shard = Shard.open(prefix)
            shard.check()
            assert shard.tokens.nbytes == 8 and shard.lengths.sum() == len(shard.tokens) and (shard.lengths >= 0).all()
