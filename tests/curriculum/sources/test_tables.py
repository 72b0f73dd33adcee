"""Rows of files of every kind: whole, in ranges and one by one; damaged files are named."""

import csv
import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from curricula.curriculum.sources.declared import TextTable
from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.sources.tables import Table, files_matching, head
from curricula.curriculum.synthesis.shard import open_dataset_input, open_table_input
from curricula.errors import StorageError, UserError


def write(path, rows, group=3):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([("text", "string")])), path, row_group_size=group)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["text"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        content = "".join(json.dumps(row) + "\n\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@examples(150)
@given(
    st.lists(
        st.tuples(st.sampled_from([".parquet", ".jsonl", ".jsonl.gz", ".json", ".csv"]), st.integers(0, 12), st.integers(1, 5)),
        min_size=1, max_size=5,
    ),
    st.data(),
)  # fmt: skip
def test_any_selection_of_rows_equals_that_of_the_whole_table(tmp_path_factory, files, data):
    folder = tmp_path_factory.mktemp("table")
    whole = []
    for number, (suffix, count, group) in enumerate(files):
        rows = [{"text": f"{number} {row}"} for row in range(count)]
        write(folder / f"{number}{suffix}", rows, group)
        whole += rows
    table = Table.open(folder)
    assert len(table) == len(whole) and list(table.rows()) == whole
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert list(table.select(range(start, stop))) == whole[start:stop]
    chosen = sorted(data.draw(st.sets(st.integers(0, len(whole) - 1)))) if whole else []
    assert list(table.select(chosen)) == [whole[number] for number in chosen]
    places = [table.place(number) for number in chosen]
    assert [head(place.file, place.number + 1)[-1] for place in places] == [whole[number] for number in chosen]


def test_another_text_of_the_same_length_at_either_end_of_a_long_file_changes_its_identity(tmp_path):
    lines, found = [b'{"text": "x"}\n'] * 20_000, set()
    for changed in (None, 0, -1):
        some = list(lines)
        if changed is not None:
            some[changed] = b'{"text": "y"}\n'
        (tmp_path / "t.jsonl").write_bytes(b"".join(some))
        found.add(Table.open(tmp_path / "t").identity)
    assert len(found) == 3
    (tmp_path / "t.jsonl").write_bytes(lines[0])  # were it hashed otherwise, all finished shards would be refused
    assert Table.open(tmp_path / "t").identity == hashlib.sha256(b"[1]t.jsonl 14 " + 2 * lines[0]).hexdigest()


def test_rows_of_a_large_row_group_are_the_ones_asked_for(tmp_path):
    whole = [{"text": str(row)} for row in range(5000)]
    write(tmp_path / "t.parquet", whole, group=4000)
    table = Table.open(tmp_path / "t")
    for numbers in (range(900, 4200), range(3000, 3001), [0, 1023, 1024, 3999, 4000], [1024], [2047, 4999]):
        assert list(table.select(numbers)) == [whole[number] for number in numbers]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9, mtime=0)[:-9], "t.jsonl.gz: damaged"),
        ("t.jsonl.gz", b"plain", "t.jsonl.gz: damaged"),
        ("t.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0)[:12] + b"\xff" * 9, "t.jsonl.gz: damaged"),
        ("t.jsonl.gz", b"", "t.jsonl.gz: damaged"),
        ("t.jsonl", b'{"text": "a"}\n{"text"', "t.jsonl: line 2 is not JSON"),
        ("t.jsonl", b'{"text": "a"}\n\n \n[1]', r"t.jsonl: line 4 is \[1\], but an object is needed"),
        ("t.jsonl", b"[1]\n", r"t.jsonl: line 1 is \[1\], but an object is needed"),
        ("t.json", b"{}", "t.json: holds a dict, but a list of rows is needed"),
        ("t.json", b"[" * 100_000, "t.json: damaged, or not what its ending says"),
        ("t.json", b"\xff", "t.json: damaged, .*text must be UTF-8"),
        ("t.csv", b'text\n"a\nb\n', "t.csv: damaged"),
        ("t.csv", b"text\n\xff\n", "t.csv: damaged, .*text must be UTF-8"),
        ("t.csv", b"text,,text,\na,,b,\n", "t.csv: two columns are named 'text'"),
        ("t.parquet", b"PAR1", "t.parquet: damaged"),
        ("t.parquet", b"", "t.parquet: damaged"),
    ],
    ids=range(15),
)
def test_a_damaged_file_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        list(Table.open(tmp_path / "t").rows())


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.parquet"])
def test_a_folder_or_a_dangling_link_in_place_of_a_file_is_named(tmp_path, name):
    (tmp_path / "t" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"t/{name}: "):
        Table.open(tmp_path / "t")
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"u/{name}: "):
        Table.open(tmp_path / "u")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.parquet"])
def test_a_file_whose_disk_fails_may_be_whole(tmp_path, name):
    """Another start of the work may read it, and nobody is told to delete it."""
    (tmp_path / name).symlink_to("/proc/self/mem" if name != "a.parquet" else name)  # reading fails, or opening
    with pytest.raises(StorageError, match=rf"{name}: cannot be read \(.*\); check its permissions and its disk"):
        Table.of([tmp_path / name])


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n{"text": "y"}')
    (tmp_path / "b.csv").write_bytes("\ufefftext\r\nx\r\ny\r\n".encode())
    (tmp_path / "c.json").write_bytes('\ufeff["x", "y"]'.encode())
    for name in "abc":
        assert list(Table.open(tmp_path / name).rows()) == [{"text": "x"}, {"text": "y"}]


def test_columns_of_unusual_types_are_read_or_named(tmp_path):
    views = pa.array(["a", "b", "c"], pa.string_view())
    pq.write_table(pa.table({"text": views}), tmp_path / "v.parquet")
    assert [row["text"] for row in Table.open(tmp_path / "v").select([0, 2])] == ["a", "c"]
    nested = pa.array([["a"], ["b"]], pa.list_(pa.string_view()))
    pq.write_table(pa.table({"text": nested}), tmp_path / "n.parquet")
    assert [row["text"] for row in Table.open(tmp_path / "n").rows()] == [["a"], ["b"]]
    structs = pa.array([{"x": b"\xff"}], pa.struct([("x", pa.binary())])).cast(pa.struct([("x", pa.string())]), safe=False)
    pq.write_table(pa.table({"id": structs, "text": ["a"]}), tmp_path / "s.parquet")
    with pytest.raises(UserError, match="s.parquet: column 'id' of type struct<x: string> cannot be read"):
        list(Table.open(tmp_path / "s").rows())


def test_a_missing_column_is_named_with_its_row(tmp_path):
    (tmp_path / "cosmopedia").mkdir()
    pq.write_table(pa.table({"id": ["1"], "body": ["x"]}), tmp_path / "cosmopedia/train.parquet")
    with pytest.raises(UserError, match=r"train.parquet: row 1 .* has no column 'text'; add it"):
        list(Documents.open("cosmopedia", tmp_path).read())


@pytest.mark.parametrize("names", [["t.jsonl", "t.csv"], ["t/a.jsonl", "t.jsonl"]])
def test_two_tables_of_one_name_are_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="as well; keep the one that holds the dataset"):
        Table.open(tmp_path / "t")


def test_rows_that_a_folder_holds_twice_are_not_read_twice(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1/a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "latest").symlink_to("v1")
    with pytest.raises(UserError, match="v1/a.jsonl: .*latest/a.jsonl has the same rows by its name, or is the same file"):
        files_matching(str(tmp_path / "*/*.jsonl"))
    (tmp_path / "v1/b.jsonl").symlink_to("a.jsonl")
    with pytest.raises(UserError, match="v1/b.jsonl: .*v1/a.jsonl has the same rows"):
        Table.open(tmp_path / "v1")
    write(tmp_path / "v1/a.jsonl.gz", [{"text": "x"}])
    for read in (lambda: Table.open(tmp_path / "v1"), lambda: files_matching(str(tmp_path / "v1/a.*"))):
        with pytest.raises(UserError, match="v1/a.jsonl.gz: .*v1/a.jsonl has the same rows"):
            read()


def test_a_pattern_passes_over_run_folders_whose_files_change_while_they_are_read(tmp_path):
    for name in ("data/a.jsonl", "runs/mine/study.yaml", "runs/mine/run.json", "runs/mine/slurm/submissions.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}\n')
    assert files_matching(f"{tmp_path}/**/*.jsonl") == [tmp_path / "data/a.jsonl"]
    for named in ("mine", "*", "m*/slurm"):  # what a pattern names itself, it enters
        assert files_matching(f"{tmp_path}/runs/{named}/**/*.jsonl") == [tmp_path / "runs/mine/slurm/submissions.jsonl"]
    with pytest.raises(UserError, match="no such file, and no file outside run folders matches it; correct the path"):
        files_matching(f"{tmp_path}/runs/**/*.jsonl")


@pytest.mark.parametrize("marker", [".fetching.json", ".0-standard-fetching.json", ".unfinished.json"])
def test_an_incomplete_dataset_is_not_read(tmp_path, marker):
    (tmp_path / "t").mkdir()
    (tmp_path / "t/00000.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "t" / marker).write_text("{}")
    for read in (lambda: Table.open(tmp_path / "t"), lambda: files_matching(f"{tmp_path}/*/*.jsonl")):
        with pytest.raises(UserError, match="this dataset is incomplete; run the command that was writing it again"):
            read()


def test_a_table_in_a_subfolder_of_a_table_is_not_passed_over(tmp_path, monkeypatch):
    folder = tmp_path / "t"
    (folder / "more" / "deep" / ".cache").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    for name in ("README.md", "info.json", ".fetched.jsonl", ".cache/old.jsonl"):
        (folder / "more" / "deep" / name).write_text("{}")
    (folder / "more" / "up").symlink_to(folder)
    own = TextTable(path=str(folder))
    (folder / "runs" / "demo" / "pretrain").mkdir(parents=True)  # the run that reads the table
    for name in ("study.yaml", "run.json", "pretrain/metrics.jsonl"):
        (folder / "runs" / "demo" / name).write_text("{}")
    assert len(own.look(tmp_path, "sources.mine")) == len(open_table_input(folder, None)) == 1
    (folder / "more" / "deep" / "b.jsonl").write_text('{"text": "b"}\n')
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/main").symlink_to(folder)
    for read in (
        lambda: own.look(tmp_path, "sources.mine"),
        lambda: open_table_input(folder, None),
        lambda: open_dataset_input("gsm8k", tmp_path, (), None),
    ):
        with pytest.raises(UserError, match=r"more/deep/b\.jsonl: is not read in a subfolder, unlike a\.jsonl above it"):
            read()
    monkeypatch.setattr(os, "walk", None)  # a shard does not look through all that lies below
    assert len(own.open(tmp_path, "sources.mine")) == 1


@pytest.mark.parametrize("name", ["b.jsonl.zst", "b.csv.gz", "b.ndjson", "b.JSONL", "b.arrow", "b.feather", "b.tsv"])
def test_a_folder_is_not_read_in_part(tmp_path, monkeypatch, name):
    (tmp_path / "t").mkdir()
    for one in ("a.jsonl", "README.md", "a.jsonl.sha256", ".b.json.gz"):
        (tmp_path / "t" / one).write_text('{"text": "x"}\n')
    monkeypatch.chdir(tmp_path / "t")
    assert len(open_table_input(Path("."), None)) == len(Table.open(tmp_path / "t")) == 1
    (tmp_path / "t" / name).write_text("x")
    with pytest.raises(UserError, match=f"{name}: is not read under this ending, unlike a.jsonl; convert, rename or move it"):
        Table.open(tmp_path / "t")


def test_a_table_of_all_parts_never_replaces_some_of_them(tmp_path):
    """The safe score alone must not become every score because of a file that holds them all."""
    folder = tmp_path / "fineweb_annotated"

    def opened(name, *parts):
        return TextTable(dataset=name, parts=parts).open(tmp_path, "sources.web")

    (folder / "train").mkdir(parents=True)
    (folder / "train/0.jsonl").write_text('{"text": "x"}\n')
    assert len(opened("fineweb-annotated")) == 1
    for name in ("fineweb-edu", "fineweb-unsafe"):
        with pytest.raises(UserError, match="train: holds all parts of locuslab/.*, but score_.* are asked for"):
            opened(name)
    with pytest.raises(UserError, match="train: holds all parts"):
        opened("fineweb-annotated", "score_1")
    (folder / "score_0.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match="train: holds all parts"):
        opened("fineweb-annotated")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_file_that_lost_rows_since_they_were_counted_is_named(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    write(path, [{"text": str(number)} for number in range(5)])
    table = Table.open(tmp_path / "t")
    write(path, [{"text": str(number)} for number in range(3)])
    assert len(list(table.select(range(3)))) == 3
    for numbers in (range(5), [0, 2, 3]):
        with pytest.raises(UserError, match=rf"t{suffix}: has lost rows since they were counted; start again"):
            list(table.select(numbers))
