"""Fetching from a local hub: the real libraries, real HTTP, real kills."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from fake_hub import FakeHub, Files
from small_studies import small_study

from curricula.curriculum.sources.declared import DATASETS
from curricula.curriculum.sources.documents import Documents
from curricula.curriculum.sources.hub import Download, downloads_of, fetch, require_whole, upstream_rows
from curricula.curriculum.sources.tables import Table
from curricula.errors import StorageError, UserError
from curricula.jobs.cli.main import main

# The libraries read HF_ENDPOINT when they are imported, so fetches run in a separate process: one line of JSON in, one line
# out. It does not sleep between the libraries' retries.
WORKER = """
import contextlib, io, json, os, resource, signal, sys, time
from dataclasses import asdict
from pathlib import Path
from curricula.errors import UserError
from curricula.curriculum.sources.hub import Download, downloads_of, fetch
time.sleep = lambda seconds: None
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
answer, sys.stdout, home = sys.stdout, sys.stderr, os.getcwd()

def one(ask):
    calls = []
    os.chdir(ask.get("folder", home))
    os.environ.pop("HF_TOKEN", None)
    if ask.get("token"):
        os.environ["HF_TOKEN"] = ask["token"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (ask.get("room", resource.RLIM_INFINITY), resource.RLIM_INFINITY))
    try:
        if "words" in ask:
            return verb(ask["words"])
        if "name" in ask:
            downloads = downloads_of(ask["name"], Path(ask["root"]))
        else:
            given = {"config": None, "split": "train", "revision": None, "columns": (), "licence": "MIT"} | ask["download"]
            downloads = [Download(**given | {"out": Path(given["out"])})]
        how = {"limit": ask.get("limit"), "element": ask.get("element")}
        return {"records": [fetch(each, lambda *at: calls.append(at), **how) for each in downloads], "calls": calls}
    except UserError as error:
        return {"error": str(error), "code": error.exit_code}

def verb(words):
    import argparse
    from curricula.jobs.cli.fetch import add_parser, fetch_data
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        asked = parser.parse_args(words)
        code = fetch_data(asked)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

for line in sys.stdin:
    print(json.dumps(one(json.loads(line))), file=answer, flush=True)
"""

UMASK = 0o027
"""Of workers: not what tests usually run with, so that files show whether it was heeded."""


class Worker:
    def __init__(self, hub: FakeHub, home: Path):
        self.log = home / "log.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=hub.environment(home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            umask=UMASK,
        )

    def begin(self, **ask: Any) -> None:
        self.process.stdin.write(json.dumps(ask) + "\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        return json.loads(self.process.stdout.readline())

    def __call__(self, **ask: Any) -> dict[str, Any]:
        self.begin(**ask)
        return self.end()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        hub.known, hub.accepted = {"hf_stranger", "hf_friend"}, {"hf_friend"}
        yield hub


@pytest.fixture(scope="module")
def worker(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(hub, tmp_path_factory.mktemp("home"))
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def _others() -> Iterator[list[Worker]]:
    others: list[Worker] = []
    yield others
    for other in others:
        other.close()


@pytest.fixture
def beside(hub: FakeHub, _others: list[Worker], tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """Another process, beside `worker`, which a test may kill."""
    if not _others or _others[-1].process.poll() is not None:
        _others.append(Worker(hub, tmp_path_factory.mktemp("beside")))
    return _others[-1]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content)
    return content.getvalue()


def card(*configs: str, suffix: str = "parquet", told: int | None = None) -> bytes:
    """A README.md that says where each configuration's files are and, for one, may tell columns and rows."""
    lines = [f"- config_name: {c}\n  data_files:\n  - split: train\n    path: {c}/*.{suffix}\n" for c in configs]
    columns = "  - name: id\n    dtype: string\n  - name: metadata\n    struct:\n    - name: dump\n      dtype: int64\n"
    columns += "  - name: text\n    dtype: string\n"
    splits = f"  - name: train\n    num_bytes: 1\n    num_examples: {told}\n"
    info = f"dataset_info:\n  config_name: {configs[0]}\n  features:\n{columns}  splits:\n{splits}"
    return f"---\n{info if told else ''}configs:\n{''.join(lines)}---\n# A dataset\n".encode()


def shards(config: str, count: int, rows: int) -> Files:
    """Parquet files whose rows say where they stand."""
    return {
        f"{config}/train-{shard:05d}-of-{count:05d}.parquet": parquet(
            [{"id": f"{config}-{shard}-{n}", "metadata": {"dump": n}, "text": f"Text {n} of {shard}."} for n in range(rows)]
        )
        for shard in range(count)
    }


def ids(out: Path) -> list[str]:
    return [row["id"] for row in Table.open(out).rows()]


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(out.glob("*.parquet"))}


def test_a_dataset_arrives_as_parquet_reads_back_as_documents_and_is_not_fetched_again(hub, worker, tmp_path, monkeypatch):
    entry = DATASETS["refuseweb"]
    files = {"README.md": card(*entry.parts), **shards(entry.parts[0], 3, 2100), **shards(entry.parts[1], 1, 5)}
    commit = hub.commit(entry.hub, files, begins=entry.revision or "")
    answer = worker(name="refuseweb", root=str(tmp_path))
    assert [record["rows"] for record in answer["records"]] == [6300, 5]
    assert answer["calls"][:4] == [[1000, 0], [2000, 0], [2100, 0], [3100, 0]]  # the card tells no size
    assert answer["calls"][-1] == [5, 5]

    documents = list(Documents.open("refuseweb", tmp_path).read())
    assert len(documents) == 6305
    assert documents[2100].id == f"{entry.parts[0]}-1-0" and documents[2100].text == "Text 0 of 1."
    out = tmp_path / entry.folder / entry.parts[0]
    assert [file.name for file in sorted(out.iterdir()) if file.name[0] != "."] == [
        f"0000{n}-of-00003.parquet" for n in range(3)
    ]
    first = pyarrow.parquet.ParquetFile(out / "00000-of-00003.parquet")
    assert first.schema_arrow.names == ["id", "text"]
    assert [first.metadata.row_group(n).num_rows for n in range(first.num_row_groups)] == [1000, 1000, 100]
    assert first.metadata.row_group(0).column(1).compression == "ZSTD"
    record = json.loads((out / ".fetched.json").read_text())
    assert record["revision"] == commit and len(commit) == 40
    assert (record["hub"], record["config"], record["licence"]) == (entry.hub, entry.parts[0], entry.licence)
    assert not (out / ".fetching.json").exists()

    (out / ".fetching.json").write_text((out / ".fetched.json").read_text())  # as a kill between the two records leaves it
    hub.requests.clear()
    again = worker(name="refuseweb", root=str(tmp_path))
    assert again["records"] == answer["records"]
    assert hub.requests == [] and not (out / ".fetching.json").exists()

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)  # so it answers even of a file that is not there
    assert [fetch(one)["rows"] for one in downloads_of("refuseweb", tmp_path)] == [6300, 5]


def test_the_elements_of_an_array_job_fetch_the_whole(hub, worker, beside, tmp_path):
    hub.commit("org/array", {"README.md": card("a", told=150), **shards("a", 5, 30)})
    asked = {"hub": "org/array", "config": "a", "out": str(tmp_path / "out")}
    beside.begin(download=asked, element=[1, 3])
    worker.begin(download=asked, element=[0, 3])
    for answer in (worker.end(), beside.end()):
        assert not answer["records"][0]["complete"]
        assert answer["calls"] == [[30, 0], [60, 0], [60, 60]]  # the card tells the rows of all files, not of its share
    assert len(contents(tmp_path / "out")) == 4 and not (tmp_path / "out/.fetched.json").exists()
    last = worker(download=asked, element=[2, 3])["records"][0]
    assert last["complete"] and last["rows"] == 150
    assert ids(tmp_path / "out") == [f"a-{shard}-{n}" for shard in range(5) for n in range(30)]


def test_two_divisions_of_one_fetch_at_once_share_the_files(hub, worker, beside, tmp_path):
    name = "train-00001-of-00003.parquet"
    hub.commit("org/divided", {"README.md": card("a"), **shards("a", 3, 1200)})
    asked = {"hub": "org/divided", "config": "a"}

    def transfers() -> int:
        return sum(request.startswith("GET") and request.endswith(name) for request in hub.requests)

    hub.requests.clear()
    worker(download=asked | {"out": str(tmp_path / "alone")})
    needed = transfers()
    hub.requests.clear()
    hub.stalled.clear()
    hub.stall_at = name
    out = tmp_path / "out"
    worker.begin(download=asked | {"out": str(out)}, element=[1, 3])
    assert hub.stalled.wait(300)
    assert (out / ".00001-of-00003.parquet.lock").stat().st_mode & 0o777 == 0o666 & ~UMASK  # so that other users can wait, too
    beside.begin(download=asked | {"out": str(out)})
    deadline = time.monotonic() + 300
    while not (out / "00000-of-00003.parquet").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)  # it has come to the file that the other is writing
    hub.stall_at = ""
    third, whole = worker.end()["records"][0], beside.end()["records"][0]
    assert third["rows"] >= 2400 and whole["complete"] and whole["rows"] == 3600
    assert transfers() == needed > 0
    assert contents(out) == contents(tmp_path / "alone")
    assert sorted(file.name for file in out.glob(".*")) == [".fetch.lock", ".fetched.json"]


def test_a_killed_fetch_resumes_and_ends_with_the_same_bytes(hub, worker, beside, tmp_path):
    hub.commit("org/killed", {"README.md": card("a"), **shards("a", 4, 1200)})
    asked = {"hub": "org/killed", "config": "a", "columns": ["id", "text"]}
    whole, out = tmp_path / "whole", tmp_path / "killed"
    worker(download=asked | {"out": str(whole)})
    hub.stalled.clear()
    hub.stall_at = "train-00002-of-00004.parquet"
    beside.begin(download=asked | {"out": str(out)})
    assert hub.stalled.wait(300)
    beside.close()  # by SIGKILL
    hub.stall_at = ""
    assert list(contents(out)) == ["00000-of-00004.parquet", "00001-of-00004.parquet"]
    assert (out / ".fetching.json").exists() and not (out / ".fetched.json").exists()
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.parquet")}

    answer = worker(download=asked | {"out": str(out)})
    assert answer["records"][0]["rows"] == 4800
    assert answer["calls"][0] == [3400, 0]  # the first two files count as done
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert contents(out) == contents(whole)
    assert not [file.name for file in out.iterdir() if file.name.endswith(".aside")]


@pytest.mark.parametrize("keep", [0, -100])
def test_a_damaged_file_is_fetched_again(hub, worker, tmp_path, keep):
    hub.commit("org/damaged", {"README.md": card("a"), **shards("a", 2, 30)})
    asked = {"hub": "org/damaged", "config": "a", "out": str(tmp_path / "out")}
    first, second = (tmp_path / f"out/0000{n}-of-00002.parquet" for n in range(2))
    worker(download=asked, element=[0, 2])
    whole = first.read_bytes()
    first.write_bytes(whole[:keep])
    record = worker(download=asked, element=[1, 2])["records"][0]
    assert not record["complete"] and record["rows"] == 30
    assert worker(download=asked)["records"][0]["rows"] == 60
    assert first.read_bytes() == whole
    before = first.stat().st_mtime_ns
    second.write_bytes(second.read_bytes()[:keep])  # of a finished download
    assert worker(download=asked)["records"][0]["rows"] == 60
    assert len(ids(tmp_path / "out")) == 60 and first.stat().st_mtime_ns == before


def test_a_file_whose_disk_fails_is_not_fetched_again(hub, worker, tmp_path, monkeypatch):
    hub.commit("org/disk", {"README.md": card("a"), **shards("a", 1, 3)})
    worker(download={"hub": "org/disk", "config": "a", "out": str(tmp_path / "out")})

    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", refuse)
    with pytest.raises(StorageError, match="00000-of-00001.parquet: cannot be read"):
        fetch(Download("org/disk", "a", "train", None, (), tmp_path / "out", "MIT"))


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"hub": "a", "limit": "many"}'])
def test_a_damaged_record_is_one_sentence(hub, worker, tmp_path, content):
    hub.commit("org/record", {"README.md": card("a"), **shards("a", 1, 3)})
    said = "damaged record of a fetch; remove the folder"
    out = tmp_path / "out"
    out.mkdir()
    (out / ".fetching.json").write_text(content)
    asked = {"hub": "org/record", "config": "a", "out": str(out)}
    assert worker(download=asked)["error"] == f"{out / '.fetching.json'}: {said} {out} and fetch it again"

    finished = downloads_of("gsm8k", tmp_path)[0].finished
    finished.parent.mkdir(parents=True)
    finished.write_text(content)
    listed = worker(words=["fetch", "--list", "--out", str(tmp_path)])
    assert listed["error"] == f"{finished}: {said} {finished.parent} and fetch it again"
    ran = worker(words=["fetch", "gsm8k", "--out", str(tmp_path)])
    assert ran["code"] == 1 and ran["err"].startswith(f"curricula: gsm8k: {finished}: {said}")
    with pytest.raises(UserError, match=said):
        require_whole(finished.parent, 1)


def test_files_and_records_have_the_permissions_of_the_umask(hub, worker, tmp_path):
    hub.commit("org/shared", {"README.md": card("a"), **shards("a", 2, 3)})
    asked = {"hub": "org/shared", "config": "a", "out": str(tmp_path / "out")}
    for element, record in ([0, 2], ".fetching.json"), (None, ".fetched.json"):
        worker(download=asked, element=element)
        files = [tmp_path / "out" / record, tmp_path / "out/.fetch.lock", *(tmp_path / "out").glob("*.parquet")]
        assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~UMASK}


def test_files_of_different_commits_do_not_mix(hub, worker, tmp_path):
    out = tmp_path / "out"
    asked = {"hub": "org/moving", "config": "a", "out": str(out)}
    old = hub.commit("org/moving", {"README.md": card("a"), **shards("a", 2, 10)})
    worker(download=asked, element=[0, 2])
    branch = asked | {"revision": "main", "out": str(tmp_path / "branch")}
    worker(download=branch, element=[0, 2])
    new = hub.commit("org/moving", {"README.md": card("a"), **shards("a", 2, 11)})
    error = worker(download=asked | {"revision": new[:7]})["error"]
    assert old in error and new in error and "remove the folder" in error
    assert worker(download=branch)["records"][0]["revision"] == old
    begun = json.loads((out / ".fetching.json").read_text())
    (out / ".fetching.json").write_text(json.dumps(begun | {"files": 3}))  # by a version of the library that divides otherwise
    assert "was fetched with files 3, not files 2" in worker(download=asked | {"revision": old})["error"]
    others = {"hub": "org/other", "config": "b", "split": "test", "columns": ["id"], "constants": {"tags": "x"}}
    for key, other in others.items():
        its_own = {"revision": "0" * 40} if key == "hub" else {}
        (out / ".fetching.json").write_text(json.dumps(begun | {key: other} | its_own))
        assert f"was fetched with {key} {other!r}, not {key} " in worker(download=asked)["error"]
    (out / ".fetching.json").write_text(json.dumps(begun))
    assert list(contents(out)) == ["00000-of-00002.parquet"]
    (record,) = worker(download=asked)["records"]  # goes on with the commit that it began with
    assert record["complete"] and record["rows"] == 20 and record["revision"] == old
    assert "with asked" in worker(download=asked | {"revision": new[:7]})["error"]
    for revision in (old[:7], None):
        (out / "00001-of-00002.parquet").unlink()  # someone deleted a file of a finished download
        (record,) = worker(download=asked | {"revision": revision})["records"]
        assert record["rows"] == 20 and record["revision"] == old

    (out / "00001-of-00002.parquet").unlink()
    (out / ".fetched.json").write_text(json.dumps(record | {"files": 3}))
    assert "was fetched with files 3, not files 2" in worker(download=asked)["error"]
    del hub.repositories["org/moving"].commits[old]  # as when someone squashes the history
    assert f"no longer has commit {old}, which {out} was begun with; remove the folder" in worker(download=asked)["error"]

    own = tmp_path / "own"
    own.mkdir()
    (own / "00000-of-00002.parquet").write_bytes(b"mine")
    assert "of unknown origin" in worker(download=asked | {"out": str(own)})["error"]


def test_a_folder_of_the_datasets_name_is_not_taken_for_the_hubs_commit(hub, worker, tmp_path):
    commit = hub.commit("org/shadowed", {"README.md": card("a"), **shards("a", 1, 3)})
    (tmp_path / "org/shadowed/a").mkdir(parents=True)
    (tmp_path / "org/shadowed/a/train.parquet").write_bytes(parquet([{"id": "mine", "text": "Not the hub's."}]))
    (tmp_path / "org/shadowed/README.md").write_bytes(card("a"))
    asked = {"hub": "org/shadowed", "config": "a", "out": str(tmp_path / "out")}
    error = worker(download=asked, folder=str(tmp_path))["error"]
    assert "org/shadowed" in error and f"not commit {commit} on the hub; run this in another folder" in error
    assert not list(tmp_path.glob("out/*.parquet"))
    assert worker(download=asked)["records"][0]["rows"] == 3


def test_only_the_first_rows(hub, worker, tmp_path):
    hub.commit("org/limited", {"README.md": card("a", told=3000), **shards("a", 3, 1000)})
    asked = {"hub": "org/limited", "config": "a", "columns": ["id", "text"], "out": str(tmp_path / "out")}
    answer = worker(download=asked, limit=1500)
    assert answer["records"][0]["rows"] == 1500 and answer["calls"] == [[1000, 1500], [1500, 1500]]
    assert list(contents(tmp_path / "out")) == ["00000-of-00001.parquet"] and upstream_rows(tmp_path / "out") == 3000
    assert ids(tmp_path / "out") == [f"a-{n // 1000}-{n % 1000}" for n in range(1500)]
    said = "was fetched with the first 1,500 rows, not all rows; ask for the first 1,500 rows again"
    assert said in worker(download=asked)["error"]
    assert "not the first 1,501 rows" in worker(download=asked, limit=1501)["error"]
    hub.requests.clear()
    assert worker(download=asked, limit=1000)["records"] == answer["records"] and not hub.requests  # there are enough


def test_a_few_rows_are_not_taken_for_the_whole(hub, worker, tmp_path):
    hub.commit("org/taste", {"README.md": card("a"), **shards("a", 1, 30)})
    asked = {"hub": "org/taste", "config": "a"}
    taste, whole, ample = tmp_path / "taste", tmp_path / "whole", tmp_path / "ample"
    worker(download=asked | {"out": str(taste), "prefix": "0-a-"}, limit=20)
    worker(download=asked | {"out": str(whole)})
    assert worker(download=asked | {"out": str(whole)}, limit=20)["records"][0]["rows"] == 30  # there are enough
    worker(download=asked | {"out": str(ample)}, limit=31)
    for rows, needed in (21, "21"), (None, "all"):
        with pytest.raises(UserError) as error:
            require_whole(taste, rows)
        said = f"{taste}: only the first 20 rows were fetched, but {needed} are needed; remove this folder"
        assert str(error.value).startswith(said) and "without --rows" in str(error.value)
    require_whole(taste, 20)
    require_whole(whole, None)
    require_whole(ample, None)  # the 30 rows it has are all there are
    require_whole(tmp_path / "absent", None)
    (tmp_path / "own").mkdir()
    require_whole(tmp_path / "own", None)


def test_gates_and_tokens(hub, worker, tmp_path):
    hub.commit("org/gated", {"README.md": card("a"), **shards("a", 1, 3)}, gated=True)
    asked = {"hub": "org/gated", "config": "a", "out": str(tmp_path / "out")}
    accept = "accept its licence at https://huggingface.co/datasets/org/gated and set HF_TOKEN"
    assert worker(download=asked)["error"] == f"dataset org/gated: gated, and there is no token; {accept}"
    refused = worker(download=asked, token="hf_stranger")["error"]
    assert refused == f"dataset org/gated: gated, and the token's account has not accepted its licence; {accept}"
    assert "does not know the token (401)" in worker(download=asked, token="hf_wrong")["error"]
    assert "copy it into HF_TOKEN again" in worker(download=asked, token="hf_bell\u2026")["error"]
    assert not (tmp_path / "out").exists()
    assert worker(download=asked, token="hf_friend")["records"][0]["rows"] == 3
    written = [file.read_bytes() for file in [*tmp_path.rglob("*"), *worker.log.parent.rglob("*")] if file.is_file()]
    assert len(written) > 5 and not any(word in content for content in written for word in (b"hf_friend", b"hf_wrong", b"bell"))


def test_what_the_hub_lacks_is_named(hub, worker, tmp_path):
    hub.commit("org/small", {"README.md": card("a"), **shards("a", 1, 3)})
    hub.commit("org/empty", {"README.md": b"# Nothing yet\n"})

    def error(**asked: Any) -> str:
        said = worker(download={"hub": "org/small", "config": "a", "out": str(tmp_path / "out")} | asked)["error"]
        assert said.startswith(f"dataset {asked.get('hub', 'org/small')}: ") and "\n" not in said and "Traceback" not in said
        return said

    assert "not on the Hugging Face hub, or private" in error(hub="org/nothing")
    assert "no revision 'v9' on the hub" in error(revision="v9")
    assert "'b' not found. Available: ['a']" in error(config="b")
    assert "Bad split: test. Available splits: ['train']" in error(split="test")
    assert "https://huggingface.co/datasets/org/empty" in error(hub="org/empty", config=None)
    hub.commit("org/broken", {"README.md": card("a"), "a/train.parquet": b"PAR1 and then nothing"})
    assert "a file cannot be read" in error(hub="org/broken")
    lines = {f"c/{number}.jsonl": json.dumps({"tags": tags}).encode() for number, tags in enumerate([[], ["x"]])}
    hub.commit("org/typed", {"README.md": card("c", suffix="jsonl"), **lines})
    said = error(hub="org/typed", config="c", out=str(tmp_path / "typed"))
    assert "00001-of-00002.parquet cannot be read (Couldn't cast" in said and "name them in `path`" in said
    assert "no column 'content' upstream, only id, metadata, text" in error(columns=["id", "content"])
    assert not (tmp_path / "out").exists()


def test_a_lost_connection_is_retried_and_finally_reported(hub, worker, tmp_path):
    hub.commit("org/flaky", {"README.md": card("a"), **shards("a", 2, 3000)})
    asked = {"hub": "org/flaky", "config": "a", "columns": ["id", "text"]}
    hub.drops = 2
    assert worker(download=asked | {"out": str(tmp_path / "once")})["records"][0]["rows"] == 6000
    assert hub.drops < 0
    worker(download=asked | {"out": str(tmp_path / "lost")}, element=[0, 2])
    hub.stall_at = "train-00001-of-00002.parquet"
    hub.stalled.clear()
    worker.begin(download=asked | {"out": str(tmp_path / "lost")})
    assert hub.stalled.wait(300)
    hub.drops, hub.stall_at = 10_000, ""
    said = worker.end()["error"]
    hub.drops = 0
    assert "the connection broke off in 00001-of-00002.parquet" in said and "finished files are kept" in said
    assert list(contents(tmp_path / "lost")) == ["00000-of-00002.parquet"]
    assert worker(download=asked | {"out": str(tmp_path / "lost")})["records"][0]["rows"] == 6000
    assert contents(tmp_path / "lost") == contents(tmp_path / "once")


def test_a_full_disk_is_reported_and_leaves_no_partial_file(hub, worker, tmp_path):
    rows = [{"text": "".join(chr(33 + (n * k * k) % 89) for k in range(400))} for n in range(3000)]
    hub.commit("org/large", {"README.md": card("a"), "a/train.parquet": parquet(rows)})
    asked = {"hub": "org/large", "config": "a", "out": str(tmp_path / "out")}
    said = "00000-of-00001.parquet: no space left on the device or quota reached; free some space and run it again"
    assert said in worker(download=asked, room=20_000)["error"]
    assert not contents(tmp_path / "out") and not list((tmp_path / "out").glob("*.aside"))
    assert worker(download=asked)["records"][0]["rows"] == 3000


def test_tables_without_types_keep_their_texts(hub, worker, tmp_path):
    tsv = "vanilla\tadversarial\tcompletion\tdata_type\nnull\t\tNA\tvanilla_harmful\nhow?\tnow!\tNo.\tadversarial_harmful\n"
    entry = DATASETS["wildjailbreak"]
    files = {"README.md": card("train", suffix="tsv"), "train/train.tsv": tsv.encode()}
    hub.commit(entry.hub, files, gated=True, begins=entry.revision or "")
    worker(name="wildjailbreak", root=str(tmp_path), token="hf_friend")
    rows = list(Table.open(tmp_path / "wildjailbreak/train").rows())
    assert [rows[0][name] for name in ("vanilla", "adversarial", "completion")] == ["null", "", "NA"]
    lines = [{"id": "a", "note": None}] * 1500 + [{"id": "b", "note": "x", "turns": [{"role": "user"}]}]
    jsonl = "".join(json.dumps(line) + "\n" for line in lines)
    hub.commit("org/lines", {"README.md": card("c", suffix="jsonl"), "c/train.jsonl": jsonl.encode()})
    asked = {"hub": "org/lines", "config": "c", "columns": ["id", "note"], "constants": {"tags": "hash_check"}}
    worker(download=asked | {"prefix": "2-c-", "out": str(tmp_path / "lines")})
    assert list(contents(tmp_path / "lines")) == ["2-c-00000-of-00001.parquet"]
    assert list(Table.open(tmp_path / "lines").select([1499, 1500])) == [
        {"id": "a", "note": None, "tags": "hash_check"},
        {"id": "b", "note": "x", "tags": "hash_check"},
    ]


def test_the_verb_fetches_what_it_can_and_reports_the_rest(hub, worker, tmp_path):
    root = tmp_path / "data"
    files = {"README.md": card("main")}
    files["main/train.parquet"] = parquet([{"question": "1 + 1?", "answer": "2"}])
    hub.commit(DATASETS["gsm8k"].hub, files, begins=DATASETS["gsm8k"].revision or "")
    kinds = ("standard", "contextual", "copyright")
    behaviours = {f"{kind}/train.parquet": parquet([{"prompt": f"a {kind} request", "category": kind}]) for kind in kinds}
    hub.commit("walledai/HarmBench", {"README.md": card(*kinds), **behaviours})
    (root / "advbench").mkdir(parents=True)
    (root / "advbench/harmful_behaviors.csv").write_text("goal,target\nx,y\n")

    ran = worker(words=["fetch", "gsm8k", "harmbench", "advbench", "advbench_completions", "tdc", "--out", str(root)])
    assert ran["code"] == 1
    assert ran["out"] == f"export CURRICULA_DATA={root}\n"
    assert "rows of gsm8k: 1 of 1\ngsm8k: 1 rows in 1 files, commit " in ran["err"]
    assert ran["err"].count("own files; left as they are") == 1
    assert "curricula: tdc: dataset walledai/TDC23-RedTeaming: not on the Hugging Face hub" in ran["err"]
    rows = list(Table.open(root / "harmbench/harmbench_behaviors_text_test").rows())
    assert [(row["prompt"], row.get("tags")) for row in rows] == [
        ("a standard request", None),
        ("a contextual request", None),
        ("a copyright request", "hash_check"),
    ]
    known = json.loads(worker(words=["fetch", "--list", "--json", "--out", str(root)])["out"])["known"]
    states = {row["name"]: row["state"] for row in known}
    assert [states[name] for name in ("gsm8k", "harmbench", "advbench", "safeweb")] == ["fetched", "fetched", "own files", ""]
    assert "wildjailbreak" in worker(words=["fetch", "--list", "--out", str(root)])["out"]
    assert worker(words=["fetch", "--out", str(root)])["code"] == 2
    assert "choose from" in worker(words=["fetch", "gsm9k"])["error"]
    next((root / "harmbench").rglob("*.parquet")).unlink()
    known = json.loads(worker(words=["fetch", "--list", "--json", "--out", str(root)])["out"])["known"]
    assert {row["name"]: row["state"] for row in known}["harmbench"] != "fetched"
    assert "leave NAME, --study" in worker(words=["fetch", "--list", "gsm8k", "--out", str(root)])["error"]


def test_the_users_own_table_of_all_parts_is_left_alone_and_read(hub, worker, tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/train.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    asked = len(hub.requests)
    ran = worker(words=["fetch", "gsm8k", "--out", str(tmp_path)])
    assert ran["code"] == 0 and "own files; left as they are" in ran["err"]
    assert len(hub.requests) == asked and [path.name for path in (tmp_path / "gsm8k").iterdir()] == ["train.jsonl"]
    known = json.loads(worker(words=["fetch", "--list", "--json", "--out", str(tmp_path)])["out"])["known"]
    assert {row["name"]: row["state"] for row in known}["gsm8k"] == "own files"


def test_the_verb_knows_what_a_study_needs(hub, worker, tmp_path):
    hub.requests.clear()
    ran = worker(words=["fetch", "--study", "jobs/studies/paper.yaml", "--out", str(tmp_path), "--json", "--rows", "2"])
    told = json.loads(ran["out"])
    named = {*told["failed"], *(entry["name"] for entry in told["fetched"])}
    assert {"fineweb-edu", "safeweb/score_1_rephrased", "fineweb-unsafe/score_5", "ultrachat", "wildguardmix"} <= named
    assert {"gsm8k", "harmbench/copyright", "jb_completions", "alpaca"} <= named
    odd = worker(words=["fetch", "gsm8k", "--out", str(tmp_path), "--part", "3/3"])
    assert odd["error"].startswith("--part 3/3: give I/N") and odd["code"] == 2
    world = worker(words=["fetch", "--study", "jobs/studies/demo.yaml"])
    assert "makes all its data; there is nothing to fetch" in world["error"] and world["code"] == 2


def test_a_table_of_the_hub_is_fetched_with_the_study_and_then_read(hub, worker, tmp_path, capsys, monkeypatch):
    mine = {"hub": "org/mine", "config": "en", "split": "test", "text": "{title}\n{body}", "id": "key"}
    study = small_study(
        tmp_path, world=None, sources={"mine": mine}, validation_documents=1,
        curriculum={"starts": [1], "safe": {"mine": 1}, "interventions": {"full": {"mine": 1}}},
    )  # fmt: skip
    description = yaml.safe_dump({"configs": [{"config_name": "en", "data_files": [{"split": "test", "path": "a.jsonl"}]}]})
    rows = "".join(json.dumps({"key": key, "title": f"T{key}", "body": f"b{key}"}) + "\n" for key in range(5))
    commit = hub.commit("org/mine", {"README.md": f"---\n{description}---\n".encode(), "a.jsonl": rows.encode()})
    fetched = worker(words=["fetch", "--study", str(study), "--out", str(tmp_path / "data")])
    assert f"org/mine/en/test: 5 rows in 1 files, commit {commit[:7]}, not stated" in fetched["err"]
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path / "data"))

    def checked():
        main(["data", "check", str(study), "--json"])
        return json.loads(capsys.readouterr().out)

    facts = checked()
    (table,) = (table for table in facts["tables"] if table["table"] == "sources.mine")
    assert (table["place"], table["documents"], table["characters"]) == ("org/mine/en/test", 5, 5 * len("T0\nb0"))
    (tmp_path / "data/org--mine/en-test").rename(tmp_path / "data/org--mine/elsewhere")
    said = "\n".join(checked()["problems"])
    assert "sources.mine: org/mine/en/test: not here yet; fetch it with `curricula data fetch`" in said
