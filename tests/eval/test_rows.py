"""Files of rows: what is read back, and what is said of a line that is no row."""

import json
import math

import msgspec
import pytest

from curricula.errors import UserError
from curricula.eval.rows import SuffixRow, append_rows, finished_batches, in_order, read_rows, write_rows

ROW = SuffixRow(
    key="k", model="m", benchmark="b", prompt_id="1", behavior="é", suffix=" x", loss=0.1, initial_loss=2.0, losses=[2.0, 0.1],
    idle_steps=0, seed=1,
)  # fmt: skip


def test_rows_are_read_back_as_they_were_written_losses_that_are_no_numbers_too(tmp_path):
    rows = [ROW, msgspec.structs.replace(ROW, loss=math.inf, losses=[math.nan])]
    append_rows(tmp_path / "rows.jsonl", rows)
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write('{"torn')
    found = read_rows(tmp_path / "rows.jsonl", SuffixRow)
    assert found[0] == rows[0] and found[1].loss == math.inf and math.isnan(found[1].losses[0]) and len(found) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'" x"', b'"\\ud800"', r"line 2 is not a SuffixRow \(.*surrogates not allowed\)"),
        (b'" x"', b'"\xed\xa0\x80"', r"line 2 is not a SuffixRow \(.*surrogates not allowed\)"),
        (b'" x"', b'"\xff"', r"line 2 is not a SuffixRow \('utf-8' codec"),
        (b'"seed": 1', b'"seed": "1"', r"line 2 is not a SuffixRow \(Expected `int`"),
        (b'"seed"', b'"sead"', "line 2 is not a SuffixRow"),
        (b"}", b"", "line 2 is not a SuffixRow .*; remove the line and run the job again"),
    ],
)
def test_a_line_that_is_no_row_is_named_with_what_is_wrong(tmp_path, old, new, said):
    line = json.dumps(msgspec.to_builtins(ROW)).encode()
    (tmp_path / "rows.jsonl").write_bytes(line + b"\n" + line.replace(old, new) + b"\n")
    with pytest.raises(UserError, match=said):
        read_rows(tmp_path / "rows.jsonl", SuffixRow)


def keyed(keys: str) -> list[SuffixRow]:
    return [msgspec.structs.replace(ROW, key=key) for key in keys]


def test_whole_batches_are_kept_in_their_order_a_cut_one_is_made_again_and_what_nobody_wants_is_set_aside(tmp_path):
    path, unused, batches = tmp_path / "rows.jsonl", tmp_path / "rows.unused.jsonl", ["ab", "cd", "ef"]
    append_rows(path, keyed("xfeca"))
    append_rows(path, keyed("b"))
    assert list(finished_batches(path, SuffixRow, batches)) == list("abef")
    assert read_rows(path, SuffixRow) == keyed("abef") and read_rows(unused, SuffixRow) == keyed("x")
    written = path.stat().st_ino
    assert list(finished_batches(path, SuffixRow, batches)) == list("abef")
    assert path.stat().st_ino == written and read_rows(unused, SuffixRow) == keyed("x")


def test_a_finished_files_rows_are_put_in_order_with_what_has_changed_in_them(tmp_path):
    path, batches = tmp_path / "rows.jsonl", ["ab", "cd"]
    write_rows(path, keyed("cdab"))
    assert in_order(path, SuffixRow, batches) == read_rows(path, SuffixRow) == keyed("abcd")
    written = path.stat().st_ino
    assert in_order(path, SuffixRow, batches) == keyed("abcd") and path.stat().st_ino == written
    changed = in_order(path, SuffixRow, batches, lambda row: msgspec.structs.replace(row, behavior="new"))
    assert changed == read_rows(path, SuffixRow) and {row.behavior for row in changed} == {"new"}
