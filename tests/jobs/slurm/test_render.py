"""Plain sbatch scripts: with stand-ins for Slurm's commands that record their words and run the script's."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from run_folders import finish, new_run
from small_studies import FOR_32_GPUS, demo, demo_file, smaller_demo, without_tuning, write_study

from curricula.durable import TEAM, write_json, write_text
from curricula.jobs.cli.main import main
from curricula.jobs.completion import read_failure
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Profile, Request
from curricula.jobs.slurm.script import body
from curricula.jobs.slurm.snapshot import take_snapshot
from curricula.jobs.slurm.submissions import BadNode, record_bad_nodes, submissions
from curricula.jobs.study import load_study

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "a b'c\"$(touch pwned);&"

SBATCH = """#!{python}
import json, sys
with open({record!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
    print("Project 12: 5 of 40 jobs\\n" + str(1000 + file.tell()) + ";cluster\\n7 GB are free")
"""
SRUN = """#!/bin/bash
while [[ $1 = --* ]]; do shift; done
exec "$@"
"""
DONE = """args=("$@"); folder="${args[-3]}/jobs/${args[-2]}/${args[-1]//\\//+}"; mkdir -p "$folder"; touch "$folder/done.json"
"""
"""What the work does last: srun's last three arguments are the run folder, the job and the label."""
SCONTROL = """#!/bin/bash
[[ $1 != requeue* ]] || {{ echo "$@" >>'{record}'; kill $SCRIPT_PID; }}
"""
SQUEUE = "#!/bin/bash\necho {state}\n"
TIMEOUT = """#!/bin/bash
[ "$1" != --signal=KILL ] || KILLED=false exec "${@:3}"
[ "$2" != squeue ] || exec "${@:2}"
exec /usr/bin/timeout "$@"
"""  # a stand-in that is silent ends by `$KILLED`; all others may take as long as they need on a busy machine


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A study rendered into folders with names that a shell would trip over."""
    folder, raw = tmp_path_factory.mktemp("pristine"), demo()
    raw["world"].update(web_documents=60, stories=20, math_problems=20, unsafe_documents=20, validation_documents=5)
    (folder / "study.yaml").write_text(yaml.safe_dump(raw))
    render(folder / "study.yaml", folder / HOSTILE / "run", folder / HOSTILE / "scripts")
    return folder


@pytest.fixture
def rendered(pristine, tmp_path):
    """A copy of it, as if it had been rendered there, and stand-ins on the PATH."""
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    run, out = tmp_path / HOSTILE / "run", tmp_path / HOSTILE / "scripts"
    for path in [*out.iterdir(), *run.rglob("*.*")]:
        if path.is_file() and run / "code" not in path.parents:
            path.write_bytes(path.read_bytes().replace(bytes(pristine), bytes(tmp_path)))
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path, "sbatch", SBATCH.format(python=sys.executable, record=str(tmp_path / "sbatch.jsonl")))
    stand_in(tmp_path, "srun", SRUN)
    stand_in(tmp_path, "scontrol", SCONTROL.format(record=tmp_path / "scontrol.log"))
    stand_in(tmp_path, "squeue", SQUEUE.format(state="RUNNING"))
    stand_in(tmp_path, "timeout", TIMEOUT)
    return run, out


def render(study: Path, run: Path, out: Path, profile: str | Path = "slurm-lab", *options: str) -> None:
    words = ["render", study, out, "--profile", profile, "--run", run, *options]
    assert main(list(map(str, words))) == 0


def stand_in(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "bin" / name).write_text(text)
    (tmp_path / "bin" / name).chmod(0o755)


def call(tmp_path, *words, **environment):
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", 'export SCRIPT_PID=$$; exec "$@"', "-", *map(str, words)],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
    )


def run_trunk(tmp_path: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script of an array of one element, as Slurm would."""
    script = next(out.glob("*-pretrain-trunk-100.sbatch"))
    return call(tmp_path, script, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="7", SLURM_JOB_NUM_NODES="2", **environment)


def test_every_array_is_submitted_once_with_the_graphs_dependencies_and_recorded(rendered, tmp_path):
    run, out = rendered
    ran = call(tmp_path, out / "submit_all.sh", "--nice=1 2")
    assert ran.returncode == 0, ran.stderr
    calls = [json.loads(line) for line in (tmp_path / "sbatch.jsonl").read_text().splitlines()]
    assert not any(word.startswith("--array") for call in calls for word in call)  # the scripts say it, and may be edited
    jobs = plan_study(load_study(tmp_path / "study.yaml")).jobs
    made = submissions(Run(run))
    assert [(one.job, one.labels) for one in made] == [(job.name, tuple(e.label for e in job.elements)) for job in jobs]
    ids = {one.job: one.job_id for one in made}
    assert len(calls) == len(jobs) and all(number.isdecimal() for number in ids.values())
    for job, words in zip(jobs, calls):
        assert words[-1].endswith(f"-{job.name}.sbatch") and "--nice=1 2" in words
        asked = [word.partition("=")[2] for word in words if word.startswith("--dependency=")]
        assert asked == ([",".join(f"{edge.kind}:{ids[edge.job]}" for edge in job.needs)] if job.needs else [])
    again = call(tmp_path, out / "submit_all.sh")
    assert again.returncode == 2 and "submitted before" in again.stderr and len(submissions(Run(run))) == len(jobs)
    stand_in(tmp_path, "sbatch", "#!/bin/bash\nexit 1\n")
    (run / "slurm/submissions.jsonl").unlink()
    refused = call(tmp_path, out / "submit_all.sh")
    assert (
        refused.returncode == 1 and refused.stderr.startswith("prepare: sbatch refused it") and "resubmit.sh" in refused.stderr
    )


def test_plain_scripts_leave_the_record_to_the_whole_team_and_look_for_colleagues_jobs(rendered, tmp_path, monkeypatch):
    run, out = tmp_path / "small/run", tmp_path / "small/scripts"
    monkeypatch.setenv(TEAM, str(os.getgid()))
    old = os.umask(0o022)
    render(write_study(tmp_path / "small", without_tuning(smaller_demo())), run, out)
    os.umask(old)
    ran = call(tmp_path, out / "submit_all.sh")
    assert ran.returncode == 0, ran.stderr
    modes = [path.stat().st_mode & 0o777 for path in (run / "slurm/submissions.jsonl", out / "submit_all.sh")]
    assert modes == [0o660, 0o770] and "--me" not in (out / "submit_all.sh").read_text()


def test_scripts_are_valid_bash_and_no_name_is_executed(rendered, tmp_path):
    _, out = rendered
    scripts = sorted(out.iterdir())
    assert len(scripts) == len(plan_study(load_study(tmp_path / "study.yaml")).jobs) + 1
    for script in scripts:
        assert call(tmp_path, "bash", "-n", script).returncode == 0
    assert not list(tmp_path.rglob("pwned"))


def test_a_script_runs_its_element_and_marks_it_done(rendered, tmp_path):
    run, out = rendered
    ran = call(tmp_path, out / "00-prepare.sbatch", SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="7")
    assert ran.returncode == 0, ran.stderr
    assert (run / "jobs/prepare/prepare/done.json").exists() and (run / "data/tokenizer/tokenizer.json").exists()
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("code", "state", "final", "requeued"),
    [
        (75, "RUNNING", False, True),  # it saved and made room
        (1, "RUNNING", False, True),  # nobody knows why: from the last checkpoint again
        (137, "RUNNING", False, True),  # a rank was killed
        (1, "RUNNING", True, False),  # another start cannot cure it
        (93, "RUNNING", True, False),  # it was started again too often
        (143, "RUNNING", True, False),  # likewise; the code is that of a rank that srun ended
        (75, "COMPLETING", False, False),  # cancelled or preempted meanwhile
    ],
)
def test_what_ended_is_requeued_unless_that_is_of_no_use(rendered, tmp_path, code, state, final, requeued):
    run, out = rendered
    mark = run / "jobs/pretrain-trunk-100/trunk/failed.json"
    told = shlex.quote(json.dumps({"final": final, **({"exit_code": 93} if code > 1 else {})}, indent=1))
    folder, file = shlex.quote(str(mark.parent)), shlex.quote(str(mark))
    stand_in(tmp_path, "srun", f"#!/bin/bash\nmkdir -p {folder}\necho {told} >{file}\nexit {code}\n")
    stand_in(tmp_path, "squeue", SQUEUE.format(state=state))
    ran = run_trunk(tmp_path, out)
    log = tmp_path / "scontrol.log"
    if requeued:
        assert log.read_text() == "requeue 7_0\n"
    else:
        assert ran.returncode == (93 if final and code > 1 else code) and not log.exists()


@pytest.mark.parametrize(("task", "requeued"), [("7_0", False), ("", False), ("8_0", True)])
def test_a_final_mark_that_another_job_of_the_element_left_ends_only_that_job(rendered, tmp_path, task, requeued):
    """Slurm can have two: sbatch took one and said that it did not, or started one again whose processes live on."""
    run, out = rendered
    file = shlex.quote(str(run / "jobs/pretrain-trunk-100/trunk/failed.json"))
    told = shlex.quote(json.dumps({"final": True, "exit_code": 93, "task": task}))
    stand_in(tmp_path, "srun", f"#!/bin/bash\necho {told} >{file}\nexit 75\n")
    ran = run_trunk(tmp_path, out)
    assert (tmp_path / "scontrol.log").exists() is requeued and (requeued or ran.returncode == 93)


def test_a_second_job_of_an_element_waits_its_turn_and_disturbs_no_count(rendered, tmp_path):
    run, out = rendered
    record_bad_nodes(Run(run), [BadNode(node="n1", reason="x", time=time.time())])
    stand_in(tmp_path, "sbatch", f"#!/bin/bash\necho asked >>'{tmp_path}/scontrol.log'; echo Job 9 to start at noon\n")
    folder, script = run / "jobs/pretrain-trunk-100/trunk", shlex.quote(str(next(out.glob("*-pretrain-trunk-100.sbatch"))))
    beside = f"SLURM_ARRAY_JOB_ID=8 bash -c 'export SCRIPT_PID=$$; exec \"$0\"' {script}"
    stand_in(tmp_path, "srun", f"""#!/bin/bash
[ $SLURM_ARRAY_JOB_ID = 7 ] || exit 251
echo >{shlex.quote(str(folder / "lock"))}
sleep 0.05
{beside}
exit 1
""")  # fmt: skip
    log = tmp_path / "scontrol.log"
    stand_in(tmp_path, "scontrol", f"""#!/bin/bash
[[ $1 = requeue || $3 = StartTime* ]] || exit
echo "$@" >>'{log}'
[ "$1 $2" != "requeue 7_0" ] || kill -KILL $SCRIPT_PID
""")  # fmt: skip
    run_trunk(tmp_path, out)
    assert log.read_text() == "requeue 8_0\nupdate JobId=8_0 StartTime=now+10minutes\nasked\nrequeue 7_0\n"
    assert (folder / "own-ends").read_text() == "1\n" and not list(folder.glob("never-began*"))


@pytest.mark.parametrize(("count", "comes_back"), [("own-ends", False), ("never-began-7_0", False), ("never-began-7_0", True)])
def test_an_element_whose_end_cannot_be_counted_within_a_minute_is_held_and_not_ended(rendered, tmp_path, count, comes_back):
    """What waits for it keeps waiting until there is space, however often Slurm has requeued it for other reasons."""
    run, out = rendered
    folder = run / "jobs/pretrain-trunk-100/trunk"
    (folder / count).mkdir(parents=True)  # as on a full disk
    starts = f"echo >{shlex.quote(str(folder / 'lock'))}" if count == "own-ends" else ":"
    stand_in(tmp_path, "srun", f"#!/bin/bash\n{starts}\nexit 1\n")
    stand_in(tmp_path, "sleep", f"#!/bin/bash\n! {str(comes_back).lower()} || rmdir {shlex.quote(str(folder / count))}\n")
    ran = run_trunk(tmp_path, out, SLURM_RESTART_COUNT="9")
    assert (tmp_path / "scontrol.log").read_text() == ("requeue 7_0\n" if comes_back else "requeuehold 7_0\n")
    assert (f"{folder}: nothing can be written there, so the job is held" in ran.stderr) is not comes_back
    assert not (folder / "failed.json").exists() and (folder / count).is_file() is comes_back


@pytest.mark.parametrize(("moved", "behind_s"), [(True, 0), (False, 0), (False, 1000)])
def test_the_time_limit_counts_that_slurm_has_when_it_is_reached(rendered, tmp_path, moved, behind_s):
    """It moves by `scontrol update TimeLimit` and by a suspension. The node's clock may be behind the controller's."""
    run, out = rendered
    start = int(time.time()) + behind_s
    end = start + 21
    stand_in(tmp_path, "squeue", f"""#!/bin/bash
[[ $* = *EndTime* ]] && echo {end + 1000 * moved} || echo RUNNING
""")  # fmt: skip
    stand_in(tmp_path, "srun", f"#!/bin/bash\n{'sleep 3' if moved else 'exec sleep 600'}\n{DONE}")
    ran = run_trunk(tmp_path, out, SLURM_JOB_START_TIME=str(start), SLURM_JOB_END_TIME=str(end))
    assert f"ended with code {0 if moved else 124}" in ran.stdout
    assert (tmp_path / "scontrol.log").exists() is not moved


def like_slurm(tmp_path: Path, script: Path) -> None:
    """Stand-ins that keep the list of nodes that the job excludes, and record the lists that sbatch is asked about. sbatch says
    that the job can start unless the list matches $TOO_MANY, and nothing if that is `silence`. Where nodes are $UP, it says
    $TOO_MANY alone; those with a / have the features behind it, not the job's."""
    stand_in(tmp_path, "srun", "#!/bin/bash\nexit 127\n")
    stand_in(tmp_path, "squeue", f"#!/bin/bash\necho RUNNING $(cat '{tmp_path}/excluded' 2>/dev/null)\n")
    lists = f"""[[ $3 != ExcNodeList=* ]] || echo "${{3#*=}}" >'{tmp_path}/excluded'"""
    stand_in(tmp_path, "scontrol", f"""#!/bin/bash\n[ "$1" != show ] || tr , '\\n' <<<"$3"\n{lists}\n""")
    stand_in(tmp_path, "sbatch", f"""#!/bin/bash
[ "$1 $2 $3 $4 $5 ${{6%%=*}} $7 $SBATCH_PARTITION" = "--test-only -d  -a 0 --exclude "{shlex.quote(str(script))}" " ] || exit 1
echo "${{6#*=}}" >>'{tmp_path}/asked'
[ "$TOO_MANY" != silence ] || exec ${{KILLED:-sleep 600}}
[ -z "$UP" ] || {{ echo "allocation failure: $TOO_MANY" >&2; exit 1; }}
[[ $6 =~ $TOO_MANY ]] || {{ echo "sbatch: Job 9 to start at 2026-11-27T05:39:02 using 4 processors on nodes n4" >&2; exit; }}
echo "allocation failure: Requested node configuration is not available" >&2
exit 1
""")  # fmt: skip
    stand_in(tmp_path, "sinfo", """#!/bin/bash
[[ $* != *--nodes=n3\\ * ]] || exec echo a,b gpu:8
for node in $UP; do [[ $node = */* ]] && echo "${node/\\// } gpu:8" || echo "$node a,b gpu:8"; done
""")  # fmt: skip


@pytest.mark.parametrize(
    ("too_many", "up", "excluded", "asked", "said"),
    [
        ("n4", "", "n7,n1,n2,n3", 1, ""),
        ("n3", "", "n7,n1,n2", 2, "of n1,n2,n3 the job avoids n1,n2: allocation failure: Requested node"),
        ("n2", "", "n7", 3, "of n1,n2,n3 the job avoids none: allocation failure: Requested node"),
        ("=", "", "n7,n1", 3, "the same nodes as before (n7,n1): allocation failure"),  # as during maintenance
        ("silence", "", "n7,n1", 3, "the same nodes as before (n7,n1): no answer"),
        ("Job violates accounting/QOS policy (job submit limit)", "n1 n2 n3 n4 n5", "n7,n1,n2,n3", 1, ""),
        ("Access/permission denied", "n1 n2 n3 n4 n4 n5/c n7", "n7,n1,n2", 2, "job avoids n1,n2: allocation failure: Access"),
    ],
)
def test_a_requeued_job_avoids_the_nodes_that_failed_within_a_week_if_slurm_can_start_it_then(
    rendered, tmp_path, too_many, up, excluded, asked, said
):
    run, out = rendered
    found = [BadNode(node=f"n{age}", reason='a "quoted": \\', time=time.time() - age * 86400, task="1_0") for age in (1, 8, 2)]
    record_bad_nodes(Run(run), found)
    like_slurm(tmp_path, next(out.glob("*-pretrain-trunk-100.sbatch")))
    (tmp_path / "excluded").write_text("n7,n1\n")  # by an earlier start, and n7 by an operator
    ours = run / "jobs/pretrain-trunk-100/trunk/avoided-7_0"
    ours.parent.mkdir(parents=True)
    ours.write_text("n1\n")
    ran = run_trunk(tmp_path, out, SLURMD_NODENAME="n3", TOO_MANY=too_many, UP=up, SBATCH_PARTITION="short")
    assert (tmp_path / "excluded").read_text() == excluded + "\n"
    assert len((tmp_path / "asked").read_text().splitlines()) == asked
    assert said in ran.stderr and ("avoids" in ran.stderr) == bool(said)


def test_what_others_exclude_stays_when_the_nodes_on_record_are_fit_again(rendered, tmp_path):
    run, out = rendered
    like_slurm(tmp_path, next(out.glob("*-pretrain-trunk-100.sbatch")))
    excluded = tmp_path / "excluded"

    def after_a_start(*bad: str) -> str:
        Run(run).bad_nodes.unlink(missing_ok=True)
        record_bad_nodes(Run(run), [BadNode(node=node, reason="x", time=time.time()) for node in bad])
        run_trunk(tmp_path, out, TOO_MANY="no")
        return excluded.read_text().strip()

    excluded.write_text("n7,n1\n")  # from the profile, or an option of submit_all.sh
    assert after_a_start() == "n7,n1" and not (tmp_path / "asked").exists()
    assert after_a_start("n1", "n2") == "n7,n1,n2"
    excluded.write_text("n8,n2\n")  # an operator
    assert after_a_start("n2", "n3") == "n8,n2,n3"
    assert after_a_start() == "n8"


@pytest.mark.parametrize(
    ("told", "calls"),
    [
        ("Requested operation is presently disabled for job 7", 3),  # as with Requeue=0
        ("Access/permission denied", 3),
        ("Unable to contact slurm controller (connect failure)", 60),  # it may come back
    ],
)
def test_a_refused_requeue_ends_the_job_at_once_and_says_how_to_go_on(rendered, tmp_path, told, calls):
    """Otherwise the job would hold its nodes for nothing."""
    run, out = rendered
    stand_in(tmp_path, "srun", "#!/bin/bash\nexit 75\n")
    log = tmp_path / "requeues"
    stand_in(tmp_path, "scontrol", f'#!/bin/bash\n[[ $1 != requeue* ]] || {{ echo >>"{log}"; echo "{told}" >&2; exit 1; }}\n')
    stand_in(tmp_path, "sleep", "#!/bin/bash\n")
    began = run / "jobs/pretrain-trunk-100/trunk"
    began.mkdir(parents=True)
    ran = run_trunk(tmp_path, out)
    assert ran.returncode == 75 and len(log.read_text().splitlines()) == calls
    failure = read_failure(began)
    assert (failure is None) == (calls == 60)
    assert failure is None or (told in failure.error and "retry" in failure.error and not failure.final)


def test_a_task_that_hangs_on_its_way_out_does_not_hold_the_nodes_of_finished_work(tmp_path, monkeypatch):
    monkeypatch.setattr("curricula.jobs.slurm.script.EXIT_PATIENCE_S", 0)
    run, jobs = new_run(tmp_path / "run")
    job = replace(jobs["pretrain-0"], request=Request(nodes=2))
    text = body(job, run.study, Profile(), run.root, take_snapshot(run.root))
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path, "srun", f"#!/bin/bash\nsleep 0.1\n{DONE}exec sleep 100\n")
    stand_in(tmp_path, "scontrol", "#!/bin/bash\n")
    stand_in(tmp_path, "script", f"#!/bin/bash\n{text}")
    began = time.monotonic()
    ran = call(tmp_path, "script", SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="8")
    assert ran.returncode == 0 and time.monotonic() - began < 60


def test_an_array_that_continues_another_ends_at_once_when_nothing_is_left(tmp_path):
    run, jobs = new_run(tmp_path / "run")
    job = jobs["pretrain-0"]
    text = body(job, run.study, Profile(), run.root, take_snapshot(run.root), continues="7")
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path, "srun", f"#!/bin/bash\necho $SLURM_ARRAY_JOB_ID >>{tmp_path}/started\n{DONE}")
    stand_in(tmp_path, "scontrol", f'#!/bin/bash\n[[ $* != *TimeLimit* ]] || echo "$2 $3" >>"{tmp_path}/limits"\n')
    stand_in(tmp_path, "script", f"#!/bin/bash\n{text}")

    def end(number: int) -> int:
        return call(tmp_path, "script", SLURM_ARRAY_TASK_ID=str(number), SLURM_ARRAY_JOB_ID="8").returncode

    write_text(run.slurm / "7.continued", "8\n9\n")
    finish(run, job.name, "data-0")
    mark = {"error": "x", "final": True, "exit_code": 93, "task": "9_1"}  # of another one that continues the first
    write_json(run.element(job.name, "full-0") / "failed.json", mark)
    assert (end(0), end(1)) == (0, 93) and not (tmp_path / "started").exists()
    write_json(run.element(job.name, "full-0") / "failed.json", {"error": "x", "final": False})
    (tmp_path / "limits").unlink()
    assert end(1) == 0 and (tmp_path / "started").read_text() == "8\n"
    assert (tmp_path / "limits").read_text() == "JobId=9_1 TimeLimit=1\n"


@pytest.mark.parametrize(
    ("state", "preempted", "began", "counted"),
    [
        ("RUNNING", "N/A", True, "own-ends"),
        ("RUNNING", "N/A", False, "never-began-7_0"),
        ("RUNNING", "2024-05-01T00:00:00", True, None),  # it ended within the grace of a preemption
        ("COMPLETING", "N/A", True, None),  # Slurm is taking the job away
        ("PENDING", "N/A", False, None),
    ],
)
def test_only_what_ended_by_itself_is_counted(rendered, tmp_path, state, preempted, began, counted):
    run, out = rendered
    folder = run / "jobs/pretrain-trunk-100/trunk"
    write_text(folder / "lock", "of an earlier start")
    starts = f"touch --date=@1 {shlex.quote(str(folder / 'lock'))}" if began else ":"  # the node's clock was set back
    stand_in(tmp_path, "srun", f"#!/bin/bash\n{starts}\nexit 137\n")
    stand_in(tmp_path, "squeue", f'#!/bin/bash\n[[ $* = *PreemptTime* ]] && echo "{preempted}" || echo {state}\n')
    run_trunk(tmp_path, out)
    found = {name: (folder / name).read_text() for name in ("own-ends", "never-began-7_0") if (folder / name).exists()}
    assert {name: text.split() for name, text in found.items()} == ({counted: ["137"]} if counted else {})


def test_work_that_left_no_mark_is_not_taken_for_done(rendered, tmp_path):
    """srun lost its step's daemon and ended with 0."""
    _, out = rendered
    stand_in(tmp_path, "srun", "#!/bin/bash\n")
    ran = run_trunk(tmp_path, out)
    assert ran.returncode and "requeue 7_0" in (tmp_path / "scontrol.log").read_text()


@pytest.mark.parametrize("change", ["edit", "add", "link", "link a folder", "owner"])
def test_a_job_runs_no_code_but_that_of_its_submission(rendered, tmp_path, change):
    run, out = rendered
    code = next((run / "code").iterdir())
    (code / "curricula/__pycache__").mkdir()  # Python's own
    (code / "curricula/__pycache__/settings.cpython-311.pyc").touch()
    script = next(out.glob("*-pretrain-trunk-100.sbatch"))
    stand_in(tmp_path, "srun", f"#!/bin/bash\ntouch {tmp_path}/ran\n{DONE}")
    environment = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_JOB_ID": "7"}
    ran = call(tmp_path, script, **environment)
    assert ran.returncode == 0 and (tmp_path / "ran").exists(), ran.stderr
    (tmp_path / "ran").unlink()
    if change == "edit":
        (code / "curricula/settings.py").write_text("print('not the code')\n")
    elif change == "add":
        (code / "torch.py").touch()
    elif change == "link":
        (code / "yaml.py").symlink_to("/dev/null")
    elif change == "link a folder":
        (code / "yaml").symlink_to("/tmp")
    elif os.geteuid():
        pytest.skip("only root can give files away")
    else:
        os.chown(code / "curricula/__pycache__/settings.cpython-311.pyc", 64003, -1)
    shutil.rmtree(run / "jobs")
    ran = call(tmp_path, script, **environment)
    assert ran.returncode == 1 and not (tmp_path / "ran").exists() and not (run / "jobs").exists()
    said = "belongs to another user now" if change == "owner" else f"curricula: {code}: is not the code that was submitted"
    assert said in ran.stderr


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    ("told", "calls", "is_held"),
    [
        ("Unable to contact slurm controller (connect failure)", 5, True),  # it comes back
        ("Requested operation is presently disabled for job 7", 3, False),  # as with Requeue=0
    ],
)
def test_a_job_is_called_held_only_once_slurm_holds_it(rendered, tmp_path, full, told, calls, is_held):
    """A file system that hangs is no reason to cancel what waits for the job, nor to delete the code."""
    run, out = rendered
    log = tmp_path / "holds"
    stand_in(tmp_path, "scontrol", f"""#!/bin/bash
[ "$1" = requeuehold ] || exit 0
echo >>'{log}'
[ $(wc -l <'{log}') -eq 5 ] || {{ echo "{told}" >&2; exit 1; }}
""")  # fmt: skip
    stand_in(tmp_path, "sleep", "#!/bin/bash\n")
    stand_in(tmp_path, "srun", "#!/bin/bash\nexit 1\n")
    if full:
        (run / "jobs/pretrain-trunk-100/trunk/never-began-7_0").mkdir(parents=True)
    else:
        stand_in(tmp_path, "sha256sum", "#!/bin/bash\nexit 1\n")
    ran = run_trunk(tmp_path, out)
    assert len(log.read_text().splitlines()) == calls and ran.returncode == 1
    cause = "nothing can be written there" if full else "cannot be read on"
    assert (cause in ran.stderr and "so the job is held" in ran.stderr) is is_held and "delete" not in ran.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_job_touches_nothing_in_a_folder_that_has_become_another_users(rendered, tmp_path):
    run, out = rendered
    os.chown(run, 64003, -1)
    ran = run_trunk(tmp_path, out)
    assert ran.returncode == 1 and f"{run}/: belongs to another user now" in ran.stderr
    assert not (run / "jobs").exists()


def test_an_element_that_another_job_has_taken_over_is_not_requeued(rendered, tmp_path):
    _, out = rendered
    stand_in(tmp_path, "srun", "#!/bin/bash\nexit 250\n")
    ran = run_trunk(tmp_path, out)
    assert ran.returncode == 250 and not (tmp_path / "scontrol.log").exists()


def test_a_snapshot_that_was_changed_is_not_submitted_again(rendered, tmp_path, capsys):
    run, out = rendered
    code = next((run / "code").iterdir())
    (code / "run_element.py").write_text("print('not the code')\n")
    words = ["render", tmp_path / "study.yaml", out, "--profile", "slurm-lab", "--run", run]
    assert main(list(map(str, words))) == 1
    assert f"{code}: this copy of the code was changed" in capsys.readouterr().err


def prepared_with(tmp_path: Path, nodes=("n1",), **profile) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of the element `prepare`, whose script ran on each of the nodes, with a stand-in for srun that prints its
    environment; and what the last start did."""
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(profile))
    render(demo_file(tmp_path), tmp_path / "run", tmp_path / "scripts", path)
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path, "srun", f"#!/bin/bash\nenv -0\n{DONE}")
    stand_in(tmp_path, "squeue", SQUEUE.format(state="RUNNING"))
    stand_in(tmp_path, "timeout", TIMEOUT)
    stand_in(tmp_path, "sleep", "#!/bin/bash\n")
    stand_in(tmp_path, "sbatch", "#!/bin/bash\necho Job 9 to start at noon\n")
    stand_in(tmp_path, "scontrol", f"""#!/bin/bash
[[ $1 != requeue ]] || echo "$@" >>'{tmp_path}/scontrol.log'
[[ $3 != ExcNodeList* ]] || {{ echo "$3" >>'{tmp_path}/scontrol.log'; kill -KILL $SCRIPT_PID; }}
""")  # fmt: skip
    script = tmp_path / "scripts" / "00-prepare.sbatch"
    ran = [call(tmp_path, script, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID="7", SLURMD_NODENAME=node) for node in nodes]
    return tmp_path / "run/jobs/prepare/prepare", ran[-1]


def test_a_setup_line_that_fails_is_named_and_tried_on_two_other_nodes(tmp_path):
    line = """module() { [ "$2" != 'no"such\\' ]; }; module load 'no"such\\'"""
    setup = ["export FIRST='a b' # remark", "export TZ=Asia/Tokyo", line, "touch went-on"]
    write_text(tmp_path / "run/jobs/prepare/prepare/lock", "of an earlier start")
    folder, ran = prepared_with(tmp_path, ("n1", "n2"), setup=setup)
    failure = read_failure(folder)
    assert failure and not failure.final and failure.error.endswith(f": {line}") and "failed with code 1 on" in failure.error
    assert failure.error in ran.stderr
    said = (tmp_path / "scontrol.log").read_text().splitlines()
    assert said == ["requeue 7_0", "ExcNodeList=n1", "requeue 7_0", "ExcNodeList=n1,n2"]


def test_what_fails_before_the_work_on_three_nodes_has_failed_for_good_and_is_notified(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    monkeypatch.setenv("https_proxy", "http://me:hunter2@proxy")
    monkeypatch.setenv("HOME", str(tmp_path))
    tell = tmp_path / "tell it"
    tell.write_text(f"#!/bin/bash\n(cat; echo \"$@\"; env) >'{tmp_path}/told'\n")
    tell.chmod(0o755)
    folder, ran = prepared_with(
        tmp_path, ("n1", "n2", "n3"), setup=["false"], notify="'~/tell it' \"two \\\" words\" '$(touch pwned)'"
    )
    failure = read_failure(folder)
    assert ran.returncode == 93 and failure and failure.final and failure.error.endswith(": false") and failure.task == "7_0"
    line, words, *environment = (tmp_path / "told").read_text().splitlines()
    assert line == f"run: prepare/prepare failed: {failure.error}" and words == 'two " words $(touch pwned)'
    assert {"CURRICULA_EVENT=failed", f"CURRICULA_RUN={tmp_path}/run", "CURRICULA_ELEMENT=prepare/prepare"} <= set(environment)
    assert "hunter2" not in "".join(environment)


def test_a_job_that_is_held_because_the_disk_is_full_is_notified(tmp_path):
    fill = f"mkdir '{tmp_path}/run/jobs/prepare/prepare/never-began-7_0'"
    _, ran = prepared_with(tmp_path, setup=[f"{fill}; false"], notify=f"tee '{tmp_path}/told'")
    told = (tmp_path / "told").read_text()
    assert told.startswith("run: prepare/prepare failed: ") and "`scontrol release 7_0`" in told and ran.returncode == 1


def test_a_token_of_the_login_node_does_not_reach_the_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JWT", "expires")
    _, ran = prepared_with(tmp_path)
    assert ran.returncode == 0 and "SLURM_JWT" not in ran.stdout


def test_setup_lines_work_in_the_scripts_own_shell(tmp_path):
    setup = ["export FIRST='a b' # remark", "source ./activate", "false || true"]
    (tmp_path / "activate").write_text("false\ndeclare -x SECOND=$FIRST\n")
    _, ran = prepared_with(tmp_path, setup=setup)
    assert ran.returncode == 0 and {"FIRST=a b", "SECOND=a b"} <= set(ran.stdout.split("\0")), ran.stderr


def test_secrets_reach_the_work_as_they_stand(tmp_path):
    secrets = tmp_path / HOSTILE / "my secrets & keys"
    secrets.parent.mkdir()
    values = {"TOKEN": "a b&c;d $(touch pwned) `x` \\ 'q", "URL": "https://u:p@h/?a=1&b=2#c", "QUOTED": "x  y", "LAST": ""}
    text = f'# mine\n\nexport TOKEN={values["TOKEN"]}\nURL={values["URL"]}\r\nQUOTED="x  y"\nLAST='
    secrets.write_bytes(text.encode())
    secrets.chmod(0o600)
    _, ran = prepared_with(tmp_path, secrets_file=str(secrets))
    assert ran.returncode == 0, ran.stderr
    assert {f"{name}={value}" for name, value in values.items()} <= set(ran.stdout.split("\0"))
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("profile", ["slurm-lab", "h100-4x8"])
def test_the_scripts_are_as_recorded(tmp_path, profile):
    """Any change in what Slurm is asked for shows as a change of these files."""
    run, out = tmp_path / "run", tmp_path / "scripts"
    render(demo_file(tmp_path), run, out, profile, *FOR_32_GPUS)
    for golden in (GOLDEN / profile).iterdir():
        text = (out / golden.name).read_text()
        text = re.sub(r"code/[0-9a-f]{12}", "code/SNAPSHOT", text.replace(str(run), "/RUN"))
        text = re.sub(r"[0-9a-f]{64}", "SEAL", text.replace(sys.executable, "/PYTHON"))
        if os.environ.get("GOLDEN") == "write":
            golden.write_text(text)
        assert text == golden.read_text(), "if this is meant, run `GOLDEN=write pytest tests/jobs/slurm/test_render.py`"
