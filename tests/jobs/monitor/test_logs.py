"""`curricula logs`: the right files, in order of time, the error that came first, and no control characters."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from run_folders import fail, new_run, report_progress, submitted

from curricula.durable import write_text
from curricula.jobs.cli.main import main
from curricula.jobs.monitor.logs import LogFile, clean, find_logs, first_error, merged
from curricula.jobs.slurm.commands import Task

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    step()
  File "train.py", line 2, in step
    raise ValueError("the root cause")
ValueError: the root cause
"""
FALLOUT = """[rank{rank}]: Traceback (most recent call last):
[rank{rank}]:   File "train.py", line 9, in <module>
[rank{rank}]:     all_reduce()
[rank{rank}]: torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error
"""


@pytest.fixture
def demo(tmp_path):
    return new_run(tmp_path / "run")[0]


def rank_logs(run, task="70_1", **texts):
    for rank, text in texts.items():
        write_text(run.slurm / "pretrain-0" / f"{task}_{rank[1:]}_log.out", text)


def shown(capsys, *words) -> str:
    assert main(["logs", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_a_tasks_files_are_found_by_array_index_and_rank_and_no_others(demo):
    rank_logs(demo, r0="", r1="", r11="")
    rank_logs(demo, task="70_11", r0="")
    rank_logs(demo, task="170_1", r0="")
    rank_logs(demo, task="2_70", r1="", r71="")  # array 2, index 70
    rank_logs(demo, task="71_0", r0="")
    write_text(demo.element("pretrain-0", "full-0") / "log.txt", "")
    keys = ("pretrain-0", "full-0"), ("pretrain-0", "data-0"), ("prepare", "prepare")
    found = find_logs(demo, {keys[0]: [Task("70", 1), Task("71", 0)], keys[1]: [Task("2", 70)], keys[2]: []})
    assert [[(log.rank, log.path.name) for log in found[key]] for key in keys] == [
        [(0, "log.txt"), (0, "70_1_0_log.out"), (0, "71_0_0_log.out"), (1, "70_1_1_log.out"), (11, "70_1_11_log.out")],
        [(1, "2_70_1_log.out"), (71, "2_70_71_log.out")],
        [],
    ]


def test_the_first_error_is_the_cause_not_its_fallout(demo, tmp_path):
    for rank, stamp in ((0, "12:00:01.000"), (1, "12:00:01.500"), (2, "12:00:01.900")):
        text = TRACEBACK if rank == 2 else FALLOUT.format(rank=rank)
        start = f"--- 2026-01-01 11:59:00.000 x, rank {rank} on n1, process 5\n"
        write_text(tmp_path / str(rank), f"{start}--- 2026-01-01 {stamp} failed\n{text}")
    error = first_error(LogFile(tmp_path / str(rank), rank) for rank in range(3))
    assert (error.rank, error.time, error.message) == (2, "2026-01-01 12:00:01.900", "ValueError: the root cause")
    assert "\n".join(error.lines) + "\n" == TRACEBACK


def test_of_several_causes_the_earliest_in_time_is_first(tmp_path):
    for rank, second in enumerate((30, 10, 20)):
        write_text(tmp_path / str(rank), f"2026-01-01 12:00:{second} failed\nKeyError: not this\n{TRACEBACK}")
    assert first_error(LogFile(tmp_path / str(rank), rank) for rank in range(3)).rank == 1


def test_when_all_is_fallout_the_earliest_fallout_is_shown(tmp_path):
    for rank, second in enumerate((30, 10)):
        write_text(tmp_path / str(rank), f"2026-01-01 12:00:{second} x\n{FALLOUT.format(rank=rank)}")
    assert first_error(LogFile(tmp_path / str(rank), rank) for rank in range(2)).rank == 1


def test_errors_of_an_earlier_start_are_ignored(tmp_path):
    start = "--- 2026-01-01 11:59:00.000 pretrain-0/full-0, rank 0 on n1, process 5\n"
    write_text(tmp_path / "log", start + TRACEBACK + start + "all is well\n")
    assert first_error([LogFile(tmp_path / "log", 0)]) is None


def test_errors_of_an_earlier_submission_are_not_the_first(demo, capsys):
    submitted(demo, "pretrain-0", "70", ["data-0", "full-0"])
    submitted(demo, "pretrain-0", "71", ["full-0"])
    submitted(demo, "pretrain-0", "72", ["full-0"])  # which has not begun
    write_text(demo.element("pretrain-0", "full-0") / "log.txt", "2026-01-01 11:00:00 x\ncurricula: here\n")
    rank_logs(demo, r0="2026-01-01 12:00:00 x\ncurricula: mended since\n")
    rank_logs(demo, task="71_0", r0="2026-01-02 12:00:00 x\nfine\n", r1="2026-01-02 12:00:01 x\ncurricula: the disk is full\n")
    error, _, lines = shown(capsys, demo.root, "pretrain-0", "full-0").partition("\n\n")
    assert "rank 1 at 2026-01-02 12:00:01" in error and error.endswith("\n    curricula: the disk is full")
    assert "mended since" in lines


@pytest.mark.parametrize(
    "line",
    [
        "curricula: data/x: no such table",
        "srun: error: n3: task 17: Out Of Memory",
        "slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED",
        "Fatal Python error: Segmentation fault",
        "Killed",
        "Bus error (core dumped)",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB",
    ],
)
def test_errors_without_a_traceback_count_too(tmp_path, line):
    write_text(tmp_path / "log", f"step 1\n{line}\nstep 2\n")
    assert first_error([LogFile(tmp_path / "log", 0)]).lines == (line,)


@pytest.mark.parametrize("then", ["The above exception was the direct cause of the following exception:",
                                  "During handling of the above exception, another exception occurred:"])  # fmt: skip
def test_a_chain_of_causes_ends_with_its_last_message(tmp_path, then):
    chain = f"{TRACEBACK}\n{then}\n\n{TRACEBACK}"
    write_text(tmp_path / "log", chain.replace("the root cause", "first", 2) + "more\n")
    error = first_error([LogFile(tmp_path / "log", 0)])
    assert error.message == "ValueError: the root cause" and "ValueError: first" in error.lines


def test_lines_of_processes_are_merged_by_time_each_in_its_own_order(tmp_path):
    write_text(tmp_path / "0", "no time\n2026-01-01 12:00:01 a\nafter a\n2026-01-01 12:00:03 c\n2026-01-01 12:00:02 back\n")
    write_text(tmp_path / "1", "2026-01-01T12:00:02,5 b\n2026-01-01 12:00:04 d\n")
    write_text(tmp_path / "2", "2026-01-01 12:00:01 e\n")  # of rank 0 of another task
    texts = [line.text for _, line in merged(LogFile(tmp_path / str(file), file % 2) for file in range(3))]
    assert [text.rsplit(" ", 1)[-1] for text in texts] == ["time", "a", "a", "e", "b", "c", "back", "d"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\x1b[31mred\x1b[0m plain\n", "red plain"),
        (b"\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\r\n", "link"),
        (b" 10%|#\r 20%|##\r100%|####\n", "100%|####"),
        (b"bell \x07 back\x08 del\x7f c1 \xc2\x9b31m\n", "bell \ufffd back\ufffd del\ufffd c1 \ufffd31m"),
        (b"\xff\xfe\ttab\n", "\ufffd\ufffd\ttab"),
    ],
)
def test_nothing_in_a_log_moves_the_terminal(raw, text):
    assert clean(raw) == text


def test_without_a_job_what_failed_is_shown_and_its_error_first(demo, capsys):
    assert "nothing has failed" in shown(capsys, demo.root)
    fail(demo, "pretrain-0", "full-0")
    fail(demo, "pretrain-0", "data-0")
    write_text(demo.element("pretrain-0", "full-0") / "log.txt", "".join(f"step {n}\n" for n in range(50)) + TRACEBACK)
    write_text(demo.element("pretrain-0", "data-0") / "log.txt", "\x1b[2Jcurricula: the disk is full\n")
    write_text(demo.element("prepare", "prepare") / "log.txt", "fine\n")
    lines = shown(capsys, demo.root).splitlines()
    heads = [line for line in lines if line.startswith("===")]
    assert [head.split(": first error")[0] for head in heads] == ["=== pretrain-0/data-0", "=== pretrain-0/full-0"]
    assert lines[1] == "    curricula: the disk is full" and "    ValueError: the root cause" in lines
    assert "pretrain-0/full-0: step 49" in lines and "pretrain-0/full-0: step 1" not in lines
    assert not any("fine" in line or "\x1b" in line for line in lines)


def test_rank_0_by_default_any_rank_and_all(demo, capsys):
    submitted(demo, "pretrain-0", "70", ["data-0", "full-0"])
    rank_logs(demo, r0="2026-01-01 12:00:01 zero\n", r1="2026-01-01 12:00:00 one\n")
    words = (demo.root, "pretrain-0", "full-0")
    assert shown(capsys, *words) == "2026-01-01 12:00:01 zero\n"
    assert shown(capsys, *words, "--rank", "1") == "2026-01-01 12:00:00 one\n"
    assert shown(capsys, *words, "--rank", "all") == "[1] 2026-01-01 12:00:00 one\n[0] 2026-01-01 12:00:01 zero\n"
    assert "there are ranks [0, 1]" in shown(capsys, *words, "--rank", "7")


def test_stage_arm_grep_and_lines_choose(demo, capsys):
    for job, label in (("pretrain-20", "full-20"), ("pretrain-20", "data-20"), ("instruct-20", "full-20")):
        write_text(demo.element(job, label) / "log.txt", f"loss {job} {label}\nother\nloss end\n")
    both = shown(capsys, demo.root, "--arm", "full-20", "--grep", "^loss p|^loss i").splitlines()
    assert both == ["pretrain-20/full-20: loss pretrain-20 full-20", "instruct-20/full-20: loss instruct-20 full-20"]
    assert shown(capsys, demo.root, "--stage", "tune", "--arm", "full-20", "-n", "1") == "instruct-20/full-20: loss end\n"
    assert shown(capsys, demo.root, "instruct-20", "full-20", "-n", "1") == "loss end\n"
    assert shown(capsys, demo.root, "instruct-20", "full-20", "-n", "9" * 20).endswith("loss end\n")
    assert shown(capsys, demo.root, "pretrain-20", "-n", "1") == "data-20: loss end\nfull-20: loss end\n"


def test_the_last_lines_of_a_long_log_are_found_without_reading_all_of_it(demo, capsys):
    submitted(demo, "pretrain-0", "70", ["data-0", "full-0"])
    rank_logs(demo, task="70_0", r0="short\n")
    long = f"2026-01-01 11:00:00 {'long ' * 2000}"
    texts = {f"r{rank}": f"{long}\n" * 1200 + f"2026-01-01 12:00:0{rank} last of {rank}\n" for rank in range(2)}
    rank_logs(demo, **texts)
    shown(capsys, demo.root, "pretrain-0", "data-0", "-n", "1")  # what is imported later is not counted
    before = bytes_read()
    last = shown(capsys, demo.root, "pretrain-0", "full-0", "--rank", "all", "-n", "2").splitlines()
    assert last == ["[0] 2026-01-01 12:00:00 last of 0", "[1] 2026-01-01 12:00:01 last of 1"]
    assert bytes_read() - before < 15e6 < 2 * len(texts["r0"])
    log = LogFile(demo.slurm / "pretrain-0/70_1_1_log.out", 1)
    texts = [line.text for _, line in merged([log], 300)]  # which lie in several pieces of the file
    assert len(texts) < 1000 and set(texts[-300:-1]) == {long}


def test_last_lines_without_a_date_come_after_earlier_ones_of_other_logs(tmp_path):
    """Such as those of an element that was submitted again: its start alone tells the date."""
    write_text(tmp_path / "70", "--- 2026-01-01 12:00:00 of the first array\nended\n")
    write_text(tmp_path / "71", "--- 2026-01-02 12:00:00 of the second\n" + "12:00:01 INFO step 1/100\n" * 100_000)
    texts = [line.text for _, line in merged((LogFile(tmp_path / task, 0) for task in ("70", "71")), 2)]
    assert texts[-2:] == ["12:00:01 INFO step 1/100"] * 2


def bytes_read() -> int:
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "job 'nowhere' is not in this study; choose one of prepare, tokenize"),
        (["pretrain-0", "nobody"], "job pretrain-0 has no element 'nobody'; it has data-0, full-0"),
        (["pretrain-0", "full-0", "--arm", "data-0"], "pretrain-0/full-0 is not among the elements that the other options"),
        (["--arm", "full-21"], "arm 'full-21' is not in this study; choose one of trunk, data-0"),
        (["--stage", "train"], "stage 'train' is not in this study; choose one of prepare"),
        (["--stage", "prepare", "--arm", "full-0"], "no element matches all these options together"),
        (["pretrain-0", "--grep", "("], "--grep '(': not a regular expression"),
        (["pretrain-0", "--rank", "x"], "--rank x: give a number"),
        (["pretrain-0", "--rank", "9" * 5000], "9: give a number from 0 on, or all"),
    ],
)
def test_a_mistake_is_one_sentence(demo, capsys, words, said):
    assert main(["logs", str(demo.root), *words]) == 2
    assert said in capsys.readouterr().err


def test_following_shows_what_is_added_whole_lines_only_and_a_log_that_is_begun_anew(demo, tmp_path, monkeypatch):
    log = demo.element("prepare", "prepare") / "log.txt"
    write_text(log, "before\nhalf ")

    def add(text):
        with open(log, "a") as file:
            file.write(text)

    def interrupt():  # what Ctrl-C raises, except where tests run in the background
        raise KeyboardInterrupt

    steps = {
        "before\n": lambda: add("\x1b[31mwhole\nla"),
        "half whole\n": lambda: add("st\n"),
        "last\n": lambda: write_text(log, "anew\n"),
        "anew\n": log.unlink,
        "": lambda: write_text(log, "longer than before\n"),
        "longer than before\n": interrupt,
    }
    shown, left = [], iter(steps.values())
    with open(tmp_path / "shown", "w") as output, open(tmp_path / "shown") as reader:

        def look(_):  # between two looks at the log
            shown.append(reader.read())
            next(left)()

        monkeypatch.setattr("curricula.jobs.cli.logs.time", SimpleNamespace(sleep=look, monotonic=lambda: 0.0))
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["logs", str(demo.root), "prepare", "-f"]) == 0
    assert shown == list(steps)


def test_a_running_element_is_shown_without_being_named(demo, capsys):
    submitted(demo, "pretrain-0", "70", ["data-0", "full-0"])
    report_progress(demo, "pretrain-0", "full-0", age_s=1)
    rank_logs(demo, r0="step 1\n")
    assert "step 1" in shown(capsys, demo.root)  # Slurm cannot be asked here; its heart beats
