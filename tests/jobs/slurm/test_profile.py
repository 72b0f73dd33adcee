"""Profiles: those that come with the suite, how they change a study's requests, and the errors for wrong ones."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml
from paths import ROOT
from small_studies import of_jobs

from curricula.errors import UsageError
from curricula.eval import EvalConfig
from curricula.jobs.graph import check_batches, plan_study
from curricula.jobs.plan import Job
from curricula.jobs.slurm.profile import Profile, load_profile
from curricula.jobs.slurm.script import body, sbatch_options
from curricula.jobs.slurm.snapshot import Snapshot
from curricula.jobs.study import STUDIES, load_study

PROFILES = sorted((ROOT / "env" / "profiles").glob("*.yaml"))
PAPER = load_study(ROOT / "jobs" / "studies" / "paper.yaml")


def first(stage: str, profile: Profile) -> Job:
    return next(job for job in plan_study(PAPER, profile).jobs if stage in job.stage_names)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_that_come_with_the_suite_are_valid_and_serve_every_job(path):
    profile = load_profile(path)
    assert profile.description
    for job in plan_study(PAPER, profile).jobs:
        options = sbatch_options(job, PAPER, profile)
        assert options["requeue"] is True and int(options["time"]) > 0 and options["partition"]


def test_a_profile_is_found_by_its_short_name_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("slurm-lab").mkdir()
    assert load_profile(Path("slurm-lab")) == load_profile(ROOT / "env" / "profiles" / "slurm-lab.yaml")


def test_sizes_come_from_the_stage_then_from_all_then_from_the_study():
    profile = parse(stages={"all": {"hours": 2, "partition": "a"}, "pretraining": {"partition": "b", "nodes": 2}})
    request = first("pretrain", profile).request
    assert (request.nodes, request.gpus_per_node, request.tasks_per_node, request.minutes) == (2, 8, 8, 120)
    assert request.total_hours == PAPER.resources.pretraining.hours
    assert sbatch_options(first("pretrain", profile), PAPER, profile)["partition"] == "b"
    assert sbatch_options(first("export", profile), PAPER, profile)["partition"] == "a"
    assert first("evaluate", profile).request.tasks_per_node == 1
    assert first("pretrain", parse(stages={"all": {"gpus_per_node": 0}})).request.tasks_per_node == 1  # on CPUs
    hours = {0.99: 60, 1e6: 60 * PAPER.resources.pretraining.hours}  # whole minutes, and no more than the study asks for
    for given, minutes in hours.items():
        assert first("pretrain", parse(stages={"pretraining": {"hours": given}})).request.minutes == minutes


def test_only_training_runs_on_several_nodes():
    profile = parse(stages={"all": {"nodes": 4}, "tuning": {"nodes": 1}})
    nodes = {stage: first(stage, profile).request.nodes for stage in ("tokenize", "export", "evaluate", "report")}
    assert set(nodes.values()) == {1} and first("pretrain", profile).request.nodes == 4
    for section in ("data", "export", "evaluation", "report"):
        with pytest.raises(UsageError, match=rf"{section}.nodes is 2, but only training runs on several nodes"):
            parse(stages={section: {"nodes": 2}})


def test_answers_are_merged_where_gpus_are_only_if_the_judge_needs_one():
    stages = {"all": {"gpus_per_node": 2}, "evaluation": {"partition": "gpu"}, "report": {"partition": "cpu"}}
    profile = parse(stages=stages)
    by_judge = {"refusal-phrases": "cpu", "harmbench": "gpu"}
    for judge, partition in by_judge.items():
        study = msgspec.structs.replace(PAPER, evaluation=EvalConfig(judge=judge, overrefusal_judge="refusal-phrases"))
        merge = plan_study(study, profile).by_name["merge-20"].request
        assert (merge.options.partition, merge.gpus_per_node) == (partition, 2 if partition == "gpu" else 0)


@pytest.mark.parametrize(
    ("given", "asked", "lead_time_s", "said"),
    [
        # No lead_time_s that is allowed would be short enough.
        (
            0.001,
            48,
            120,
            r"stages.tuning.hours: 0.001 h \(4 s\) are no longer than the lead_time_s of 120,.*; give more hours$",
        ),
        (0.01, 48, 36, r"stages.tuning.hours: 0.01 h \(36 s\) are no longer .*; give more hours, or a shorter lead_time_s$"),
        (1, 0.01, 36, r"the study's hours for tune: 0.01 h \(36 s\) are no longer"),
    ],
)
def test_hours_that_end_before_a_job_could_save_are_refused(given, asked, lead_time_s, said):
    tuning = msgspec.structs.replace(PAPER.resources.tuning, hours=asked)
    study = msgspec.structs.replace(PAPER, resources=msgspec.structs.replace(PAPER.resources, tuning=tuning))
    with pytest.raises(UsageError, match=said):
        plan_study(study, parse(stages={"tuning": {"hours": given}}, lead_time_s=lead_time_s))


def test_gpus_among_which_a_batch_does_not_divide_are_refused():
    plan = plan_study(PAPER, parse(stages={"pretraining": {"nodes": 3}}))
    with pytest.raises(UsageError, match=r"pretraining.global_batch is \d+, which the 24 data-parallel processes of pretrain-"):
        check_batches(plan, plan.needs)
    plan = plan_study(PAPER, parse(stages={"tuning": {"gpus_per_node": 8}}))
    check_batches(plan, [("tokenize", "fineweb-edu/00000"), ("pretrain-0", "full-0")])
    said = r"tuning.instruct.global_batch is 4, which the 8 data-parallel processes of instruct-0 cannot share evenly"
    with pytest.raises(UsageError, match=said):
        check_batches(plan, plan.needs)
    pairs = msgspec.structs.replace(PAPER, resources=msgspec.structs.replace(PAPER.resources, tensor_parallel=2))
    shared = plan_study(pairs, parse(stages={"tuning": {"gpus_per_node": 8}}))
    check_batches(shared, of_jobs(shared, "instruct-0"))
    split = msgspec.structs.replace(PAPER, resources=msgspec.structs.replace(PAPER.resources, tensor_parallel=32))
    plan = plan_study(split, Profile())
    with pytest.raises(
        UsageError, match=r"instruct-0: \d+ processes are not a multiple of tensor_parallel 32; change the nodes"
    ):
        check_batches(plan, of_jobs(plan, "instruct-0"))


@pytest.mark.parametrize("name", [path.stem for path in STUDIES.glob("*.yaml")])
def test_the_batches_of_every_study_of_the_suite_suit_the_gpus_that_it_asks_for(name):
    plan = plan_study(load_study(Path(name)), Profile())
    check_batches(plan, plan.needs)


def test_paths_in_a_variable_that_is_not_set_are_refused(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert parse(runs="$SCRATCH/runs").run_root("x") == Path("/scratch/me/runs/x")
    assert parse(python="$SCRATCH/env/python").interpreter() == "/scratch/me/env/python"
    with pytest.raises(UsageError, match="runs: .NOSUCH/x names a variable that is not set"):
        parse(runs="$NOSUCH/x").run_root("x")


def test_a_study_says_what_jobs_without_a_gpu_ask_for_and_a_profile_may_say_otherwise():
    study = msgspec.structs.replace(PAPER, resources=msgspec.structs.replace(PAPER.resources, data_hours=7, data_cpus=5))

    def asked(stage: str, **stages) -> tuple[object, object]:
        profile = parse(stages=stages)
        job = next(job for job in plan_study(study, profile).jobs if stage in job.stage_names)
        options = sbatch_options(job, study, profile)
        return options["time"], options.get("cpus-per-task")

    assert [asked(stage) for stage in ("prepare", "tokenize")] == [(420, 5)] * 2
    assert [asked(stage) for stage in ("export", "report")] == [(420, None)] * 2
    assert asked("tokenize", data={"cpus_per_task": 3, "hours": 2}) == (120, 3)
    assert asked("pretrain", all={"cpus_per_task": 14})[1] == 14


def test_the_sites_names_of_queues_reach_the_script():
    named = {"reservation": "course", "qos": "long", "partition": "gpu", "account": "a", "constraint": "ib", "exclude": "n1"}
    profile = parse(stages={"all": named})
    assert named.items() <= sbatch_options(first("evaluate", profile), PAPER, profile).items()


def test_options_that_the_suite_has_no_word_for_are_handed_on():
    stages = {
        "all": {"exclusive": True, "options": {"licenses": "fs", "contiguous": True}},
        "export": {"options": {"contiguous": False, "mem": False}},
        "evaluation": {"memory_gb": 4, "options": {"mem": False}},
    }
    profile = parse(stages=stages)
    assert sbatch_options(first("evaluate", profile), PAPER, profile)["mem"] == "4096M"  # a key of its own counts
    whole = sbatch_options(first("pretrain", profile), PAPER, profile)
    assert (whole["mem"], whole["exclusive"]) == (0, True)
    assert "mem" not in sbatch_options(first("export", profile), PAPER, profile)
    assert sbatch_options(first("pretrain", profile), PAPER, profile)["contiguous"] is True
    assert "contiguous" not in sbatch_options(first("export", profile), PAPER, profile)
    assert sbatch_options(first("export", profile), PAPER, profile)["licenses"] == "fs"


def test_gpus_are_asked_for_in_the_sites_own_way_and_by_their_kind():
    stages = {
        "all": {"gpu_option": "gres", "options": {"gres": "lscratch:100"}},
        "pretraining": {"gpu_type": "h100"},
        "evaluation": {"constraint": "a40|l40s", "gpus_per_node": 1, "options": {"gres": False}},
        "export": {"gpu_option": "gpus-per-node", "gpu_type": "a100", "gpus_per_node": 2},
    }
    profile = parse(stages=stages)
    asked = {
        stage: sbatch_options(first(stage, profile), PAPER, profile) for stage in ("prepare", "pretrain", "evaluate", "export")
    }
    assert {stage: options.get("gres") for stage, options in asked.items()} == {
        "prepare": "lscratch:100",
        "pretrain": "gpu:h100:8,lscratch:100",
        "evaluate": "gpu:1",
        "export": "lscratch:100",
    }
    assert {stage for stage, options in asked.items() if "gpus-per-node" in options} == {"export"}
    assert asked["export"]["gpus-per-node"] == "a100:2" and asked["evaluate"]["constraint"] == "a40|l40s"


def parse(**raw) -> Profile:
    from curricula.settings import parse as parse_settings

    return parse_settings(raw, Profile, "p.yaml")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"stages": {"pretrain": {}}}, "stages: unknown key `pretrain`; did you mean `pretraining`?"),
        ({"stages": {"all": {"partion": "x"}}}, "stages.all: unknown key `partion`; did you mean `partition`?"),
        ({"stages": {"all": {"partition": "a\n#SBATCH --wrap=x"}}}, "stages.all.partition: expected `str` matching"),
        ({"stages": {"all": {"options": {"wrap": "x"}}}}, "options names 'wrap'.*The suite sets these itself"),
        ({"stages": {"all": {"options": {"--mem": 0}}}}, "options names '--mem'; give long options of sbatch without dashes"),
        ({"stages": {"all": {"options": {"comment": "a\n#SBATCH --wrap=x"}}}}, "; write it on one line"),
        ({"stages": {"all": {"memory_gb": 4, "options": {"mem-per-gpu": 1}}}}, "but the key memory_gb, here or under `all`"),
        ({"stages": {"all": {"cpus_per_task": 4, "options": {"cpus-per-gpu": 1}}}}, "but the key cpus_per_task, here or"),
        ({"stages": {"all": {"options": {"gres": "gpu:h100:8"}}}}, "use gpus_per_node and gpu_type with gpu_option: gres"),
        (
            {"stages": {"all": {"partition": "a", "options": {"partition": "b"}}}},
            "stages.all: options.partition is 'b', but the key partition, here or under `all`, is 'a'; keep one of them",
        ),
        (
            {"stages": {"all": {"options": {"mem": "0"}}, "tuning": {"memory_gb": 4}}},
            "stages.tuning.options.mem is '0', but the key memory_gb, here or under `all`, is 4.0; keep one of them",
        ),
        (
            {"stages": {"all": {"options": {"exclusive": "user"}}, "tuning": {"exclusive": False}}},
            "options.exclusive is 'user', but the key exclusive, here or under `all`, is false; keep one of them",
        ),
        ({"stages": {"all": {"options": {"time": "1-0"}}}}, "options names 'time'.*The suite sets these itself"),
        ({"environment": {"HF_TOKEN": "x"}}, "HF_TOKEN.*put it in secrets_file"),
        *(
            ({"environment": {name: "x"}}, f"environment names {name}, .*put it in secrets_file")
            for name in (
                "WANDB_KEY",
                "WANDB_API_KEY",
                "AWS_ACCESS_KEY_ID",
                "DB_PWD",
                "PGPASSWORD",
                "HTTP_AUTH",
                "APIKEY",
                "GH_PAT",
                "DATABASE_URL",
                "SENTRY_DSN",
            )
        ),
        ({"environment": {"HTTPS_PROXY": "http://me:hunter2@proxy"}}, "environment names HTTPS_PROXY, .*secrets_file"),
        ({"setup": ["export GH_PAT=hunter2"]}, "setup.0 holds GH_PAT, .*secrets_file"),
        ({"setup": ['export GH_PAT="hunter2"']}, "setup.0 holds GH_PAT, .*secrets_file"),
        ({"srun_options": ["--export=ALL,HF_TOKEN=hunter2"]}, "srun_options.0 holds HF_TOKEN, .*secrets_file"),
        ({"notify": "curl https://me:hunter2@host"}, "notify holds a URL's password, .*secrets_file"),
        ({"notify": "mail -s 'it's over' me"}, "notify is .*it's over.* .No closing quotation.; quote its words"),
        (
            {"python": "/venv/bin/python", "container": {"kind": "pyxis", "image": "x.sqsh"}},
            "python is '/venv/bin/python', which has an effect only without `container`",
        ),
        ({"notify": " "}, "notify is ' ', which names no command; give one, or remove the key"),
        ({"environment": {"GH_PAT": ["hunter2"]}}, "environment.GH_PAT: expected .*; it is hidden"),
        ({"environment": {"label": "x"}}, "environment names 'label'; use capital letters"),
        ({"environment": {"A-B": "x"}}, "environment names 'A-B'; use capital letters"),
        ({"environment": {"IFS": ","}}, "environment names 'IFS'; use capital letters"),
        ({"setup": ["module load a\nrm -r b"]}, "setup.0: expected `str` matching"),
        ({"stages": {"all": {"memory_gb": 1e-5}}}, "stages.all.memory_gb: expected `float` >= 0.01; it is 1e-05"),
        ({"lead_time_s": 0}, "lead_time_s: expected `int` >= 1; it is 0"),
        ({"lead_time_s": 10}, "lead_time_s is 10,.*the smallest that works is 25"),
        ({"lead_time_s": 20}, "lead_time_s is 20,.*the smallest that works is 25"),
        ({"cluster": "a,b"}, "cluster: expected `str` matching"),
        ({"container": {"kind": "docker", "image": "x"}}, "'docker' is not known; choose one of apptainer, pyxis"),
        ({"container": {"kind": "pyxis", "image": "x", "mounts": ["a,b"]}}, "comma"),
    ],
)
def test_a_wrong_profile_is_explained_in_a_sentence(raw, said):
    with pytest.raises(UsageError, match=re.escape(said) if ".*" not in said else said) as stopped:
        parse(**raw)
    assert "hunter2" not in str(stopped.value)


def test_variables_of_the_fabric_are_no_secrets():
    names = ("NCCL_IB_HCA", "NCCL_IB_PKEY", "NCCL_SOCKET_IFNAME", "UCX_TLS", "TOKENIZERS_PARALLELISM", "PWD", "OLDPWD",
             "TIKTOKEN_CACHE_DIR", "TOKENIZER_PATH", "VLLM_MAX_TOKENS", "SSH_AUTH_SOCK", "XAUTHORITY", "GIT_AUTHOR_NAME",
             "NVSHMEM_BYPASS", "https_proxy")  # fmt: skip
    assert parse(environment=dict.fromkeys(names, "x"))


def test_a_profile_may_take_secrets_from_elsewhere():
    container = {"kind": "pyxis", "image": "docker://me@registry#image", "options": ["--container-env=HF_TOKEN"]}
    assert parse(setup=["export HF_TOKEN=$(cat ~/token)", 'export GH_PAT="$OTHER"'], container=container)


def test_a_file_of_secrets_named_by_mistake_is_not_shown_and_long_values_are_cut(tmp_path):
    path = tmp_path / "secrets"
    path.write_text("HF_TOKEN=hf_very_secret\n")
    with pytest.raises(UsageError, match="expected `mapping`, got `str`") as said:
        load_profile(path)
    assert "hf_very_secret" not in str(said.value)
    with pytest.raises(UsageError, match="lead_time_s: ") as said:
        parse(lead_time_s="x" * 1000)
    assert len(str(said.value)) < 200


def test_secrets_that_others_can_read_are_refused_and_never_written(tmp_path, monkeypatch):
    secrets, path = tmp_path / "secrets", tmp_path / "p.yaml"
    secrets.write_text("HF_TOKEN=hf_very_secret\n")
    path.write_text(yaml.safe_dump({"secrets_file": str(secrets)}))
    for mode in (0o644, 0o640):
        secrets.chmod(mode)
        with pytest.raises(UsageError, match=f"others can read it .mode {mode:o}.; protect it with `chmod 600"):
            load_profile(path)
    secrets.chmod(0o600)

    def script() -> str:
        profile, code = load_profile(path), Snapshot(tmp_path / "code", "0" * 64)
        return body(first("prepare", profile), PAPER, profile, tmp_path / "run", code)

    assert "hf_very_secret" not in script() and f"read_secrets {secrets}\n" in script()
    monkeypatch.chdir(tmp_path)
    path.write_text(yaml.safe_dump({"secrets_file": "secrets"}))
    assert load_profile(path).secrets_file == str(secrets)  # jobs and `retry` begin in other folders
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/secrets", "$HOME/secrets"):
        path.write_text(yaml.safe_dump({"secrets_file": name}))
        assert load_profile(path).secrets_file == name  # a colleague's `retry` reads the colleague's
        assert f"read_secrets {secrets}\n" in script()
    secrets.write_text(" # mine\nHF_TOKEN=hf_very_secret\nhf_very_secret\n")
    with pytest.raises(UsageError, match="line 3 is not NAME=value") as said:
        load_profile(path)
    assert "hf_very_secret" not in str(said.value)
    secrets.unlink()
    with pytest.raises(UsageError, match="which cannot be read"):
        load_profile(path)
