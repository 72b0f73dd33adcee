"""`curricula status`: the run folder and Slurm together, as a table and as JSON; also without Slurm and while it is down."""

import json
import re
import socket

import pytest
from run_folders import FakeSlurm, fail, finish, finish_evaluation, new_run, report_progress, squeue_line, submitted
from small_studies import demo as demo_study

from curricula.durable import exclusive_lock, write_json, write_text
from curricula.eval.rows import VerdictRow, append_rows
from curricula.jobs.cli.main import main
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.study import parse_study
from curricula.terminal import clock, count


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return new_run(tmp_path / "run")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    return FakeSlurm(tmp_path / "bin", monkeypatch)


def elements(run, capsys) -> dict[str, dict]:
    assert main(["status", str(run.root), "--json"]) == 0
    return {f"{item['job']}/{item['label']}": item for item in json.loads(capsys.readouterr().out)}


def table(run, capsys, *words) -> str:
    assert main(["status", str(run.root), *words]) == 0
    return capsys.readouterr().out


def test_the_folder_alone_shows_what_is_done_running_failed_and_interrupted(demo, capsys):
    run, jobs = demo
    finish(run, "pretrain-0", "full-0", seconds=5)
    fail(run, "pretrain-0", "data-0", "the disk is full")
    report_progress(run, "pretrain-20", "full-20", age_s=1000)
    with exclusive_lock(run.element("pretrain-20", "data-20") / "lock"):
        found = elements(run, capsys)
    states = {name: item["state"] for name, item in found.items() if item["state"] != "waiting"}
    assert states == {
        "pretrain-0/full-0": "done",
        "pretrain-0/data-0": "failed",
        "pretrain-20/full-20": "interrupted",
        "pretrain-20/data-20": "running",
    }
    assert found["pretrain-0/full-0"]["seconds"] == 5 and found["pretrain-0/data-0"]["error"] == "the disk is full"
    assert found["pretrain-20/full-20"]["progress"]["done"] == 30


def test_slurm_shows_what_is_queued_running_and_what_it_killed(demo, slurm, capsys):
    run, jobs = demo
    labels = [element.label for element in jobs["evaluate-instruct-0"].elements]
    submitted(run, "evaluate-instruct-0", "70", labels)
    states = ["PENDING", "RUNNING", "OUT_OF_MEMORY", "TIMEOUT", "NODE_FAIL", "CANCELLED", "COMPLETED", "FAILED"]
    states += ["CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"]
    slurm.queue(
        *(("70", str(place), state, "Priority" if place == 0 else "None", "n2", place) for place, state in enumerate(states))
    )
    report_progress(run, "evaluate-instruct-0", labels[1])
    found = elements(run, capsys)
    of_job = [found[f"evaluate-instruct-0/{label}"] for label in labels[: len(states)]]
    ended = [*["failed"] * 3, "cancelled", *["failed"] * 2]
    assert [item["state"] for item in of_job] == ["pending", "running", *ended, *["running"] * 3, *["pending"] * 3]
    assert (
        [of_job[place]["reason"] for place in (0, 5)] == ["Priority", ""]
        and of_job[1]["nodes"] == "n2"
        and of_job[1]["restarts"] == 1
    )
    assert "memory" in of_job[2]["error"] and "time limit" in of_job[3]["error"] and "node n2 failed" in of_job[4]["error"]
    assert "left no mark that it is done" in of_job[6]["error"]
    assert [item["task"] for item in of_job[:2]] == ["70_0", "70_1"]
    assert found["prepare/prepare"]["state"] == "waiting" and found["prepare/prepare"]["task"] == ""


def test_an_element_that_was_killed_is_explained_by_its_log(demo, slurm, capsys):
    run, _ = demo
    submitted(run, "pretrain-0", "70", ["full-0"])
    slurm.queue(("70", "0", "FAILED", "NonZeroExitCode", "n1", 0))
    write_text(run.slurm / "70_0_3_log.out", "step 1\nFatal Python error: Segmentation fault\n")
    write_text(run.element("pretrain-0", "full-0") / "log.txt", "2026-01-01 12:00:00 x\ncurricula: before, on this machine\n")
    error = elements(run, capsys)["pretrain-0/full-0"]["error"]
    assert error == "Slurm says FAILED; Fatal Python error: Segmentation fault"


def test_an_element_on_another_machine_is_recognised_by_its_heartbeat(demo, capsys):
    run, _ = demo
    report_progress(run, "pretrain-0", "full-0", age_s=3)  # on n1, whose locks cannot be seen here
    report_progress(run, "pretrain-0", "data-0", age_s=3, host=socket.gethostname())
    found = elements(run, capsys)
    assert found["pretrain-0/full-0"]["state"] == "running" and found["pretrain-0/data-0"]["state"] == "interrupted"


def test_one_squeue_and_one_sacct_for_a_whole_study(demo, slurm, capsys):
    run, jobs = demo
    for number, job in enumerate(jobs.values()):
        submitted(run, job.name, str(100 + number), [element.label for element in job.elements])
    script = f"sbatch {run.slurm}/x.sh"
    slurm.answer(
        "sacct",
        f"100_0|CANCELLED by 0|0:0|None assigned|{script}\n101_3|TIMEOUT|0:15|n3|{script}\n"
        f"101_4|FAILED|3:0|n3|{script}\n101_5|FAILED|0:11|n3|{script}\n102_[0-5]|PENDING|0:0||{script}\n",
    )
    found = elements(run, capsys)
    (squeue,), (sacct,) = slurm.calls("squeue"), slurm.calls("sacct")
    assert {"--array", "--states=all"} < {*squeue} and {"--allocations", "--array", "--parsable2"} < {*sacct}
    assert (found["prepare/prepare"]["state"], found["prepare/prepare"]["nodes"]) == ("cancelled", "")
    ended = [found[f"tokenize/{element.label}"]["error"] for element in jobs["tokenize"].elements[4:6]]
    assert ended == ["Slurm says FAILED (exit code 3)", "Slurm says FAILED (signal 11)"]
    timed_out = found[f"tokenize/{jobs['tokenize'].elements[3].label}"]
    assert timed_out["state"] == "failed" and timed_out["nodes"] == "n3"
    assert found["report/report"]["state"] == "interrupted" and "is not in Slurm's queue" in found["report/report"]["error"]


def test_accounting_is_not_asked_when_squeue_and_the_folder_suffice(demo, slurm, capsys):
    run, jobs = demo
    submitted(run, "pretrain-0", "7", ["full-0", "data-0"])
    submitted(run, "pretrain-20", "8", ["full-20"])
    finish(run, "pretrain-0", "full-0")
    fail(run, "pretrain-0", "data-0")
    slurm.queue(("8", "0", "PENDING", "Dependency", "", 0))
    elements(run, capsys)
    assert slurm.calls("sacct") == []


def test_a_number_that_slurm_gave_again_to_a_strange_job_tells_nothing(demo, slurm, capsys):
    """A controller that lost its state counts from the beginning."""
    run, _ = demo
    submitted(run, "pretrain-0", "7", ["full-0", "data-0"])
    submitted(run, "pretrain-20", "8", ["full-20"])
    submitted(run, "pretrain-20", "9", ["data-20"])
    submitted(run, "pretrain-0", "9", ["data-0"])
    lines = [squeue_line("7", "0", "RUNNING", output="/of/others/log"), squeue_line("9", "0", "RUNNING", output=slurm.output)]
    slurm.answer("squeue", "".join(f"{line}\n" for line in lines))
    slurm.answer("sacct", "8_0|CANCELLED by 7|0:0|n1|sbatch /of/others/slurm/x.sh\n")
    found = elements(run, capsys)
    assert found["pretrain-0/full-0"]["state"] == found["pretrain-20/full-20"]["state"] == "interrupted"
    assert "task 8_0 is not in Slurm's queue" in found["pretrain-20/full-20"]["error"]
    assert found["pretrain-0/data-0"]["state"] == "running" and found["pretrain-20/data-20"]["state"] == "interrupted"


def test_an_element_submitted_again_is_judged_by_its_latest_task(demo, slurm, capsys):
    run, _ = demo
    submitted(run, "pretrain-0", "7", ["full-0", "data-0"])
    submitted(run, "pretrain-0", "9", ["data-0"])
    fail(run, "pretrain-0", "data-0")
    slurm.queue(("7", "1", "FAILED", "NonZeroExitCode", "n1", 0), ("9", "0", "PENDING", "Resources", "", 0))
    item = elements(run, capsys)["pretrain-0/data-0"]
    assert (item["state"], item["task"], item["error"]) == ("pending", "9_0", "")


@pytest.mark.parametrize("how", ["down", "absent", "hangs"])
def test_without_slurm_the_folder_is_shown_and_one_line_says_so(demo, slurm, capsys, monkeypatch, how):
    run, _ = demo
    submitted(run, "pretrain-0", "7", ["full-0", "data-0"])
    submitted(run, "pretrain-20", "8", ["full-20", "data-20"])
    finish(run, "pretrain-0", "full-0")
    report_progress(run, "pretrain-20", "full-20", age_s=3)
    report_progress(run, "pretrain-20", "data-20", age_s=3000)
    if how == "down":
        slurm.answer("squeue", error="slurm_load_jobs error: Unable to contact slurm controller", code=1)
    elif how == "absent":
        slurm.remove("squeue")
        monkeypatch.setenv("PATH", str(slurm.folder))
    else:
        slurm.answer("squeue", script="exec sleep 60")
        monkeypatch.setattr("curricula.jobs.monitor.state.SLURM_PATIENCE_S", 0.3)
    shown = table(run, capsys)
    (said,) = [line for line in shown.splitlines() if line.startswith("squeue")]
    assert {"down": "Unable to contact", "absent": "not on this machine's PATH", "hangs": "no answer"}[how] in said
    states = {name: item["state"] for name, item in elements(run, capsys).items()}
    assert states["pretrain-0/full-0"] == "done" and states["pretrain-0/data-0"] == "pending"
    assert states["pretrain-20/full-20"] == "running"  # its heart beats
    assert states["pretrain-20/data-20"] == "interrupted"


def test_jobs_that_slurm_forgot_are_no_problem(demo, slurm, capsys):
    run, _ = demo
    submitted(run, "pretrain-0", "7", ["full-0"])
    finish(run, "pretrain-0", "full-0")
    slurm.answer("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert "squeue" not in table(run, capsys)
    submitted(run, "pretrain-0", "8", ["data-0"])
    slurm.answer("sacct", error="Slurm accounting storage is disabled", code=1)
    assert "sacct" not in table(run, capsys) and elements(run, capsys)["pretrain-0/data-0"]["state"] == "interrupted"
    slurm.answer("sacct", error="sacct: error: Problem talking to the database: Connection refused", code=1)
    item = elements(run, capsys)["pretrain-0/data-0"]
    assert item["state"] == "interrupted" and "task 8_0 is not in Slurm's queue" in item["error"]
    assert "the accounting did not answer (sacct: sacct: error: Problem talking to the database" in item["error"]


@pytest.mark.parametrize(("state", "shown"), [("PENDING", "interrupted"), ("RUNNING", "interrupted"), ("TIMEOUT", "failed")])
def test_a_job_that_only_the_accounting_has_is_lost_unless_that_has_its_end(demo, slurm, capsys, state, shown):
    run, _ = demo
    submitted(run, "pretrain-0", "7", ["full-0"])
    slurm.answer("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    slurm.answer("sacct", f"7_0|{state}|0:0|None assigned|sbatch {run.slurm}/x.sh\n")
    assert elements(run, capsys)["pretrain-0/full-0"]["state"] == shown


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_its_terminal_and_never_cuts_a_job_or_label(demo, slurm, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    run, jobs = demo
    elements = jobs["evaluate-instruct-20"].elements
    label = next(element.label for element in elements if element.label.startswith("full-20/overrefusal-safebeam/"))
    submitted(run, "evaluate-instruct-20", "5", [label, "data-20/probes"])
    submitted(run, "pretrain-20", "6", ["full-20"])
    slurm.queue(
        ("5", "0", "RUNNING", "None", "h100-[001-004]", 3),
        ("5", "1", "OUT_OF_MEMORY", "None", "h100-005", 0),
        ("6", "0", "RUNNING", "None", "h100-[006-009]", 0),
    )
    figures = {"loss": 2.345, "tokens": 6e11, "tokens_per_second": 1.2e6, "mfu": 0.41}
    report_progress(run, "pretrain-20", "full-20", 171_661, 286_102, **figures)
    report_progress(run, "evaluate-instruct-20", label, 11, 520)
    shown = table(run, capsys)
    assert max(map(len, shown.splitlines())) <= width
    assert re.search(rf"^evaluate-instruct-20  +0/{len(elements)}, 1 running", shown, re.MULTILINE)
    names = {name for line in shown.splitlines() for name in re.findall(r"[^\s/]+", line)}
    assert set(label.split("/")) <= names  # each name whole
    assert bool(re.search(f"^  {label}  +running", shown, re.MULTILINE)) == (width > 80)  # on one line where there is room
    assert "172k/286k" in shown and "2.345" in shown
    assert ("h100-[006-009]" in shown, "41%" in shown, "600B" in shown) == (width > 120, width > 80, width > 120)


def test_a_narrow_terminal_shows_long_names_of_arms_and_every_column_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    raw, arm = demo_study(), "mathematics-introduced-late-30"
    raw["curriculum"]["arms"] = {arm: [{"until": 0.5, "mix": "safe"}, {"until": 1, "mix": "full"}]}
    run = Run.create(tmp_path / "run", parse_study(raw, "demo"))
    jobs = plan_study(run.study).jobs
    job = next(job for job in jobs if job.name.startswith("evaluate-instruct") and job.elements[0].arm == arm)
    report_progress(run, job.name, job.elements[0].label, 345_678, 1_234_567, left_s=12 * 86400)
    lines = table(run, capsys, "--job", job.name).splitlines()
    assert max(map(len, lines)) <= 80 and "    attacks-topk/harmbench" in [line.rstrip() for line in lines]
    (row,) = [line for line in lines if arm in line]
    assert row.split() == [f"{arm}/", "running", "346k/1.23M", "12d", "00:00", "left"]


def test_what_was_cancelled_as_a_whole_has_one_row_and_what_was_not_submitted_its_remedy(demo, slurm, capsys):
    run, _ = demo
    submitted(run, "pretrain-0", "5", ["data-0", "full-0"])
    submitted(run, "pretrain-20", "6", ["data-20", "full-20"])
    slurm.queue(*(("5", place, "CANCELLED", "", "", 0) for place in "01"), ("6", "0", "CANCELLED", "", "", 0),
                ("6", "1", "PENDING", "Priority", "", 0))  # fmt: skip
    shown = table(run, capsys)
    report_progress(run, "pretrain-0", "full-0", 7, 10)  # what had begun shows how far it came
    assert re.search(r"^  full-0 +cancelled +7/10 ", table(run, capsys), re.MULTILINE)
    fail(run, "pretrain-20", "data-20")
    assert f"see `curricula logs {run.root} pretrain-20`" in " ".join(table(run, capsys).split())
    assert "0/2, 2 cancelled" in shown and " full-0 " not in shown and re.search(r"^  data-20 +cancelled", shown, re.MULTILINE)
    assert "238 waiting: not submitted yet; repeat `curricula submit`" in shown


def test_a_run_that_has_not_begun_has_whole_headings(demo, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert re.search(r"^job +state *$", table(demo[0], capsys), re.MULTILINE)


def test_tokenising_shows_its_speed_as_training_does(demo, capsys):
    run, jobs = demo
    label = jobs["tokenize"].elements[0].label
    for job, element, speed in (("tokenize", label, 2.5e5), ("pretrain-0", "full-0", 1.2e6)):
        report_progress(run, job, element, tokens_per_second=speed, loss=2.0)
        with exclusive_lock(run.element(job, element) / "lock"):
            shown = table(run, capsys)
        assert "tok/s" in shown and count(speed) in shown


def test_a_straggler_of_a_running_element_is_named_below_the_table_also_after_ten_errors(demo, capsys):
    run, jobs = demo
    for number, label in enumerate(jobs["evaluate-instruct-0"].labels[:11]):
        fail(run, "evaluate-instruct-0", label, f"error {number}.")
    text = "rank 13 (gpu07, GPU 5) takes 1.41 times as long as the median rank"
    report_progress(run, "pretrain-0", "full-0", straggler=text)
    report_progress(run, "pretrain-0", "data-0", straggler=13)
    shown = " ".join(table(run, capsys).split())
    assert f"pretrain-0/full-0: held up: {text}" in shown and "data-0: held up" not in shown
    assert "error 9." in shown and "error 10." not in shown and "and 1 more; --json shows all" in shown


def test_only_the_selected_elements_are_shown(demo, capsys):
    run, _ = demo
    finish(run, "pretrain-0", "full-0")
    assert main(["status", str(run.root), "--job", "pretrain-0", "--json"]) == 0
    assert [item["label"] for item in json.loads(capsys.readouterr().out)] == ["data-0", "full-0"]
    assert "1 of 2 done" in table(run, capsys, "--job", "pretrain-0")


def test_reasons_for_waiting_are_explained_and_errors_named(demo, slurm, capsys):
    run, _ = demo
    submitted(run, "pretrain-20", "5", ["full-20", "data-20"])
    submitted(run, "pretrain-60", "6", ["full-60", "data-60"])
    held = "job requeued in held state"  # so squeue calls it after `scontrol requeuehold`
    slurm.queue(("5", "0", "PENDING", "DependencyNeverSatisfied", "", 0), *((*task, "PENDING", held, "", 0) for task in
                (("5", "1"), ("6", "0"), ("6", "1"))))  # fmt: skip
    fail(run, "pretrain-0", "full-0", "loss nan at step 3 \x1b]0;owned\x07\x1b[2J")
    shown = table(run, capsys)
    assert "1 pending: DependencyNeverSatisfied (a job it needs failed" in shown
    release = "scontrol release '5_[1],6_[0-1]'"
    assert f"3 pending: {held} (held: its log may say why; `{release}` releases it)" in " ".join(shown.split())
    assert "pretrain-0/full-0: loss nan at step 3" in shown and "\x1b" not in shown and "\x07" not in shown
    assert f"curricula retry {run.root}" in " ".join(shown.split())


@pytest.mark.parametrize("content", [b"", b"[]", b'{"done": "x", "seconds": [], "error": 3}', b"{", b"\xed\xa0\x80"])
@pytest.mark.parametrize("name", ["done.json", "failed.json", "progress.json"])
def test_a_damaged_file_affects_nothing_else_and_a_mark_is_named(demo, capsys, name, content):
    run, _ = demo
    folder = run.element("pretrain-0", "full-0")
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    finish(run, "pretrain-0", "data-0")
    found = elements(run, capsys)
    assert found["pretrain-0/data-0"]["state"] == "done"
    item = found["pretrain-0/full-0"]
    if name == "progress.json":
        assert item["state"] == "interrupted" and item["progress"] is None and item["error"] == ""
    else:
        assert item["state"] == "failed" and str(folder / name) in item["error"] and "delete it" in item["error"]
    table(run, capsys)


def test_figures_that_are_not_numbers_are_harmless(demo, capsys):
    run, _ = demo
    report_progress(
        run,
        "pretrain-0",
        "full-0",
        loss=float("nan"),
        tokens=float("inf"),
        mfu="high",
        tokens_per_second=None,
        left_s=float("inf"),
    )
    with exclusive_lock(run.element("pretrain-0", "full-0") / "lock"):
        assert elements(run, capsys)["pretrain-0/full-0"]["progress"]["figures"]["loss"] is None  # JSON knows no NaN
        assert "nan" in table(run, capsys)


@pytest.mark.parametrize("on_slurm", [False, True])
def test_an_element_whose_results_are_gone_is_not_done(demo, slurm, capsys, on_slurm):
    run, jobs = demo
    job = jobs["evaluate-base-0"]
    if on_slurm:
        submitted(run, job.name, "7", job.labels)
        slurm.answer("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
        slurm.answer("sacct", "".join(f"7_{n}|COMPLETED|0:0|n1|sbatch {run.slurm}/x.sh\n" for n in range(len(job.labels))))
    for element in job.elements[:2]:
        finish_evaluation(run, job, element.label)
    (run.evaluation(job.elements[1].arm, "base") / f"{job.elements[1].eval_task.name}.jsonl").unlink()
    found = elements(run, capsys)
    assert [found[f"{job.name}/{element.label}"]["state"] for element in job.elements[:2]] == ["done", "interrupted"]
    said = (
        "was done, but its results are gone, or not those that it made, or a decoder has changed since: it will be made again"
    )
    assert found[f"{job.name}/{job.elements[1].label}"]["error"] == said


def test_a_merge_by_an_earlier_version_of_the_judge_is_not_reported_as_lost(tmp_path, capsys):
    run, jobs = new_run(tmp_path / "run", "smollm2-135m")
    merge = jobs["merge-50"].elements[0]
    finish(run, "merge-50", merge.label)
    rows = run.evaluation(merge.arm, merge.kind)
    write_text(rows / "attacks-topk.jsonl", "")
    assert elements(run, capsys)[f"merge-50/{merge.label}"]["state"] == "done"
    earlier = VerdictRow(key="k", judge="refusal-phrases", version="1", label="safe", question="q", tells_helpful=None)
    append_rows(rows / "attacks-topk.verdicts.jsonl", [earlier])
    found = elements(run, capsys)[f"merge-50/{merge.label}"]
    assert found["state"] == "interrupted"
    assert found["error"].endswith("or the judge has changed since: it will be made again")


def test_a_damaged_record_of_submissions_is_one_sentence(demo, capsys):
    run, _ = demo
    write_text(run.submissions, "nonsense\n")
    assert main(["status", str(run.root)]) == 1
    assert "submissions.jsonl: line 1 is not a submission" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_job_that_fails_and_starts_again_shows_its_last_failure_and_its_restarts(demo, slurm, capsys, state):
    run, _ = demo
    submitted(run, "pretrain-20", "8", ["data-20", "full-20"])
    slurm.queue(("8", "0", state, "BeginTime", "", 3), ("8", "1", state, "BeginTime", "", 3))
    name = "failed.json" if state == "PENDING" else "failed-before.json"  # set aside at the next start
    for label, task in (("data-20", "8_0"), ("full-20", "5_0")):  # the other's failure is of an earlier submission
        failure = {"error": "no route to host\x1b[2J", "time": 2.0, "final": False, "task": task, "restarts": 2}
        write_json(run.element("pretrain-20", label) / name, failure)
    found = elements(run, capsys)
    looping, healthy = found["pretrain-20/data-20"], found["pretrain-20/full-20"]
    assert looping["state"] == state.lower() and looping["restarts"] == 3 and looping["error"] == ""
    assert looping["last_failure"].startswith("no route to host") and healthy["last_failure"] == ""
    assert "pretrain-20/data-20: restarted 3x, last failure: no route to host" in table(run, capsys)
    assert main(["logs", str(run.root)]) == 0
    shown = capsys.readouterr().out
    assert "pretrain-20/data-20: last failure, after 2 restarts: no route to host" in shown
    assert "\x1b" not in shown


def test_the_text_of_a_failure_is_cut_and_obeyed_by_no_terminal_in_json_too(demo, capsys):
    run, _ = demo
    fail(run, "pretrain-0", "data-0", "\x9b2J\u202e https://me:hunter2@host " + "x" * 5000)
    shown = table(run, capsys)
    assert 400 < shown.count("x") < 520 and "hunter2" not in shown
    assert main(["status", str(run.root), "--json"]) == 0
    shown = capsys.readouterr().out
    assert shown.isascii() and "\\u009b2J\\u202e" in shown and "hunter2" not in shown


def test_watch_needs_a_terminal(demo, capsys):
    assert main(["status", str(demo[0].root), "--watch"]) == 2
    assert "--watch: standard output is not a terminal" in capsys.readouterr().err


def test_watch_looks_as_often_as_asked_and_ends_when_all_is_done(demo, slurm, monkeypatch, capsys):
    run, waited = demo[0], []
    submitted(run, "pretrain-0", "7", ["data-0", "full-0"])
    slurm.queue(("7", "0", "PENDING", "Dependency", "", 0), ("7", "1", "PENDING", "Dependency", "", 0))

    def sleep(seconds):
        if seconds < 1:  # of `subprocess`, while a command that has answered ends
            return
        waited.append(seconds)
        assert len(waited) == 1, "it goes on although all is done"
        for label in ("data-0", "full-0"):
            finish(run, "pretrain-0", label)

    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setattr("curricula.jobs.cli.status.time.sleep", sleep)
    assert main(["status", str(run.root), "--watch", "--interval", "7", "--job", "pretrain-0"]) == 0
    shown = capsys.readouterr().out
    assert waited == [7.0] and shown.index("all pending") < shown.rindex("all done")


def test_times_and_counts_are_short():
    assert [clock(s) for s in (0, 59.6, 3600, 90_000, float("inf"), float("nan"))] == [
        "0:00",
        "1:00",
        "1:00:00",
        "1d 01:00",
        "-",
        "-",
    ]
    assert [count(n) for n in (0, 950, 999.7, 12_345, 1.711e9, 6e11, 3.24e12, float("nan"))] == [
        "0", "950", "1.00k", "12.3k", "1.71B", "600B", "3.24T", "-",
    ]  # fmt: skip
