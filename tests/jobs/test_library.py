"""What `import curricula` gives to a notebook."""

import subprocess
import sys

import pytest
from small_studies import demo
from study_rows import append_judged, generation

import curricula
from curricula.durable import write_json
from curricula.errors import UsageError
from curricula.jobs import run
from curricula.jobs.study import parse_study
from curricula.model.checkpoints import checkpoint


def test_answers_of_a_run_know_their_arm_and_stage(tmp_path):
    raw = {**demo(), "seeds": [42, 43]}
    del raw["seed"]
    made = curricula.Run.create(tmp_path / "run", parse_study(raw, "demo"))
    row = generation(key="a", benchmark="harmbench", verdict="harmful")
    append_judged(made.evaluation("full-20-s43", "instruct") / "attacks-topk.jsonl", [row])
    (answer,) = curricula.Run(str(tmp_path / "run")).answers()
    told = {name: answer[name] for name in ("arm", "start", "interventions", "training_seed", "point", "stage", "verdict")}
    assert told == {
        "arm": "full-20", "start": 0.2, "interventions": "full", "training_seed": 43, "point": "",
        "stage": "instruct", "verdict": "harmful",
    }  # fmt: skip


def test_answers_of_a_sweep_know_their_point(tmp_path):
    raw = {**demo(), "sweep": {"curriculum.interventions.full.refuseweb": [2, 4]}}
    made = curricula.Run.create(tmp_path / "run", parse_study(raw, "demo"))
    for key in ("full-20.refuseweb-2", "full-20.refuseweb-4"):
        rows = [generation(key=key, benchmark="harmbench", verdict="harmful", model=key)]
        append_judged(made.evaluation(key, "instruct") / "attacks-topk.jsonl", rows)
    told = [(answer["model"], answer["arm"], answer["point"]) for answer in made.answers()]
    assert told == [(f"full-20.refuseweb-{weight}", "full-20", f"refuseweb-{weight}") for weight in (2, 4)]


def test_a_run_names_the_version_of_the_suite_even_where_there_is_no_commit(tmp_path, monkeypatch):
    for module in (run, checkpoint):
        monkeypatch.setattr(module, "running_commit", lambda: "")
    made = curricula.Run.create(tmp_path / "run", parse_study(demo(), "demo"))
    assert made.provenance["packages"]["safety-curricula"] == curricula.__version__
    assert checkpoint.versions.__wrapped__()["curricula"] == curricula.__version__


def test_what_is_offered_is_there_without_torch():
    code = "import sys, curricula as c\nfor name in sys.argv[1:]: print(name, bool(getattr(c, name)), 'torch' in sys.modules)"
    offered = [name for name in curricula.__all__ if name != "load_model"]
    ended = subprocess.run([sys.executable, "-c", code, *offered], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [f"{name} True False" for name in offered]


def test_what_is_not_offered_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Rnu'"):
        _ = curricula.Rnu


@pytest.mark.parametrize("by_this_code", [True, False])
def test_a_study_that_cannot_be_read_names_the_code_that_made_the_run(tmp_path, by_this_code):
    made = curricula.Run.create(tmp_path / "run", parse_study(demo(), "demo"))
    with open(made.root / "study.yaml", "a") as file:
        file.write("later: 1\n")
    if not by_this_code:
        write_json(made.root / "run.json", {**made.provenance, "git": {"sha": "0123456789abcdef", "changed_files": []}})
    with pytest.raises(UsageError, match="unknown key .later.") as refused:
        _ = curricula.Run(made.root).study
    assert ("the code of commit 0123456789ab, which can read it" in str(refused.value)) != by_this_code
