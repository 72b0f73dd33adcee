"""What a job's batch script asks for and shows the work: names, folders, an image's mounts."""

import re
import subprocess

import pytest
import yaml
from paths import STUDIES
from run_folders import new_run
from small_studies import demo, demo_file

from curricula.errors import UsageError
from curricula.jobs.cli.main import main
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Container, Profile
from curricula.jobs.slurm.script import body, check_root, sbatch_options
from curricula.jobs.slurm.snapshot import Snapshot, take_snapshot
from curricula.jobs.study import load_study, parse_study


@pytest.mark.parametrize("study", ["demo", "demo-full", "paper", "smollm2-135m"])
def test_names_of_jobs_differ_in_the_columns_that_squeue_shows(study):
    plan, profile = plan_study(load_study(STUDIES / f"{study}.yaml")), Profile()
    names = [str(sbatch_options(job, plan.study, profile)["job-name"]) for job in plan.jobs]
    assert len({name[:8] for name in names}) == len(names) and all(name.endswith(f"@{study}") for name in names)


def test_the_nodes_own_disk_is_named_to_the_work_and_expanded_only_there(tmp_path):
    run, jobs = new_run(tmp_path / "run")
    profile = Profile(node_scratch="$DISK/$(touch pwned)")
    text = body(jobs["pretrain-0"], run.study, profile, run.root, take_snapshot(run.root))
    (line,) = [line for line in text.splitlines() if "CURRICULA_NODE_SCRATCH" in line]
    ran = subprocess.run(["bash", "-c", f"{line}; echo $CURRICULA_NODE_SCRATCH"], capture_output=True, text=True)
    assert ran.stdout.strip() == "$DISK/$(touch pwned)"


def test_an_image_sees_the_data_folder_that_the_run_was_made_with(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path / "data"))
    study = load_study(STUDIES / "paper.yaml")
    run = Run.create(tmp_path / "run", study)
    monkeypatch.delenv("CURRICULA_DATA")  # as in another shell
    job, profile = plan_study(study).jobs[0], Profile(container=Container(kind="apptainer", image="a.sif"))
    text = body(job, study, profile, run.root, take_snapshot(run.root))
    assert f"--bind {tmp_path}/data:{tmp_path}/data" in text


def test_an_image_is_wrapped_around_the_work_alone(tmp_path, monkeypatch):
    """The batch script, with Slurm's commands, runs outside; the run folder is seen inside under its own name."""
    monkeypatch.setenv("IMAGES", "/images")
    ngc = "docker://$oauthtoken@nvcr.io#nvidia/pytorch"  # NGC's user of this name, no variable
    command = " --mpi=pmi2 \\\n    apptainer exec --bind {run}:{run} --bind /images:/i --nv /images/c.sif python3 {run}/code/"
    mounts = "--container-mounts={run}:{run},/images:/i"
    words = f" --mpi=pmi2 '--container-image={ngc}' {mounts} --nv --no-container-mount-home"
    for kind, image, expected in (("apptainer", "$IMAGES/c.sif", command), ("pyxis", ngc, words)):
        profile = tmp_path / f"{kind}.yaml"
        container = {"kind": kind, "image": image, "options": ["--nv"], "mounts": ["$IMAGES:/i"]}
        profile.write_text(yaml.safe_dump({"container": container, "srun_options": ["--mpi=pmi2"]}))
        run, out = tmp_path / f"run-{kind}", tmp_path / f"out-{kind}"
        assert main(["render", str(demo_file(tmp_path)), str(out), "--profile", str(profile), "--run", str(run)]) == 0
        text = (out / "00-prepare.sbatch").read_text()
        assert expected.format(run=run) in text and "\nrequeue " in text


def test_an_image_sees_read_only_what_the_study_names_elsewhere(tmp_path):
    for name in ("models/tokenizer", "models/draft", "tables", "jailbreaks", "run/judge"):
        (tmp_path / name).mkdir(parents=True)
    raw = demo()
    raw["tokenizer"] = {"folder": str(tmp_path / "models/tokenizer")}
    raw["sources"]["mine"] = {"path": str(tmp_path / "tables/*.parquet"), "text": "body", "id": "doc"}
    judge = {"name": "local", "model": str(tmp_path / "run/judge"), "text": "{generation}", "replies": {"NO": "safe"}}
    raw["evaluation"].update(judge=judge, overrefusal_judge="refusal-phrases")
    raw["evaluation"]["gcg"]["probe_sampling"] = {"draft": str(tmp_path / "models/draft")}
    raw["evaluation"]["attacks"] = {"artifacts": {"theirs": str(tmp_path / "jailbreaks")}}
    study = parse_study(raw, "study.yaml")
    job, run = plan_study(study).jobs[0], tmp_path / "run"
    profile = Profile(container=Container(kind="apptainer", image="a.sif"))
    text = body(job, study, profile, run, take_snapshot(run))
    mounts = [str(tmp_path / name) for name in ("tables", "jailbreaks", "models/tokenizer", "models/draft")]
    words = [f"--bind {path}:{path}:ro" for path in mounts]
    assert all(word in text for word in words) and text.count("--bind") == 5
    assert max(map(text.index, words)) < text.index(f"--bind {run}:{run} ")  # it stays writable if it is inside one of them


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        ("hub/models--x/snapshots/abc", ["hub/models--x"]),  # its files are links to the blobs
        ("hub/models--x/snapshots/*/data.jsonl", ["hub/models--x"]),
        ("snapshots/abc", ["snapshots/abc"]),  # not the hub's
        ("me/[ab].jsonl", ["me/a.jsonl", "me/b.jsonl"]),  # the home folder itself stays writable
        ("*/a.jsonl", ["me/a.jsonl"]),
        ("me/tables/*.jsonl", ["me/tables"]),
        ("me/tables[1]/*.jsonl", ["me/tables[1]"]),  # brackets in the name of a folder are no pattern
    ],
)
def test_an_image_sees_where_the_files_of_a_path_lie_and_no_more(tmp_path, monkeypatch, path, mounted):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for name in ("hub/models--x/snapshots/abc", "hub/models--x/blobs", "snapshots/abc", "me/tables", "me/tables[1]"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / "me" / name).touch()
    raw = demo()
    raw["sources"]["mine"] = {"path": str(tmp_path / path), "text": "body", "id": "doc"}
    study = parse_study(raw, "study.yaml")
    job, profile = plan_study(study).jobs[0], Profile(container=Container(kind="apptainer", image="a.sif"))
    text = body(job, study, profile, tmp_path / "run", Snapshot(tmp_path / "code", "0" * 64))
    mounts = re.findall(r"--bind '?(\S+):\1:ro", text)
    assert sorted(mounts) == [str(tmp_path / name) for name in mounted]


@pytest.mark.parametrize("name", ["%j", "a,b", "a\\b", "a\nb"])
def test_a_run_folder_in_whose_name_slurm_reads_something_else_is_refused(tmp_path, name):
    """It would look for logs in another folder."""
    with pytest.raises(UsageError, match="in a path a meaning of their own; name a folder without them with --run"):
        check_root(tmp_path / name)


@pytest.mark.parametrize("name", ["a:b", "a,b"])
def test_what_an_image_cannot_mount_is_refused_before_anything_is_submitted(tmp_path, monkeypatch, name):
    (folder := tmp_path / name).mkdir()
    study = load_study(STUDIES / "paper.yaml")
    job, code = plan_study(study).jobs[0], Snapshot(tmp_path / "code", "0" * 64)
    profile = Profile(container=Container(kind="pyxis", image="a.sqsh"))
    with pytest.raises(UsageError, match=f"{folder}: a container cannot mount a path with ':' or ','"):
        body(job, study, profile, folder, code)
    monkeypatch.setenv("CURRICULA_DATA", str(folder))
    with pytest.raises(UsageError, match=f"{folder}: a container cannot mount"):
        body(job, study, profile, tmp_path / "run", code)
    body(job, study, Profile(), tmp_path / "run", code)
