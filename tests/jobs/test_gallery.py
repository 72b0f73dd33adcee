"""The studies of neighbouring papers that come with the suite: what each plans to do, and each run to a report in miniature."""

import msgspec
import pytest
from miniatures import miniature
from paths import STUDIES
from rich.console import Console

from curricula.durable import read_json
from curricula.jobs.cli.local import run_elements
from curricula.jobs.estimates import describe
from curricula.jobs.graph import plan_study
from curricula.jobs.study import load_study, parse_study


@pytest.mark.parametrize(
    ("name", "arms", "tokens", "trained", "hours"),
    [
        ("spp", 3, 90.0, 270.0, 2531),
        ("early-exposure", 8, 5.4, 258.4, 1843),
        ("finetuners-fallacy", 5, 200.0, 840.0, 6527),
        ("safety-reflection", 6, 100.0, 520.0, 3970),
        ("deep-ignorance", 4, 550.0, 1200.0, 35155),
        ("paper-v2", 7, 600.0, 8820.0, 67333),
        ("ladder", 21, 13.5, 2264.3, 9063),
        ("paper", 7, 600.0, 3240.0, 24735),
    ],
)
def test_what_a_study_of_the_gallery_costs(name, arms, tokens, trained, hours):
    """Arms; billions of tokens of an arm and of all; GPU-hours of pretraining and midtraining."""
    study = load_study(STUDIES / f"{name}.yaml")
    value = describe(plan_study(study))
    found = [len(value["arms"]), round(value["budget"]["tokens"] / 1e9, 1)]
    found += [round(value["trained_tokens"]["with_trunk_sharing"] / 1e9, 1), round(value["gpu_hours"]["pretraining"])]
    assert found == [arms, tokens, trained, hours]
    days = value["gpu_hours"]["pretraining_days_on_its_gpus"]
    assert round(days * 24 * study.resources.pretraining.gpus) == hours
    for arm, described in zip(study.arms, value["arms"]):  # the phases follow one another and make up the budget
        budget, phases = study.of(arm).budget, described["phases"]
        steps = [phase[end] for phase in phases for end in ("start_step", "stop_step")]
        assert steps[0] == 0 and steps[1:-1:2] == steps[2::2] and steps[-1] == budget.steps
        samples = [sum(phase["samples"].values()) for phase in phases]
        assert [phase["tokens"] for phase in phases] == [count * budget.sequence_length for count in samples]
        assert sum(phase["tokens"] for phase in phases) == budget.tokens
    midtrained = {"spp": 50.0, "finetuners-fallacy": 15.0, "deep-ignorance": 1.3}
    assert round(value["trained_tokens"]["midtraining"] / 1e9, 1) == midtrained.get(name, 0)


@pytest.mark.slow  # a minute or two each on two cores
@pytest.mark.parametrize("name", ["early-exposure", "finetuners-fallacy", "safety-reflection", "deep-ignorance"])
def test_a_study_of_the_gallery_runs_to_a_report_in_miniature(tmp_path, name):
    study = parse_study(miniature(name), name)
    original = load_study(STUDIES / f"{name}.yaml")
    assert [arm.key for arm in study.arms] == [arm.key for arm in original.arms]
    assert msgspec.structs.replace(study.curriculum) == original.curriculum
    plan = plan_study(study)
    run = run_elements(tmp_path / "run", plan, Console(quiet=True), list(plan.needs))
    pages = [run.report / "points" / point if point else run.report for point in study.variants]
    for page, variant in zip(pages, study.variants.values()):
        rows = read_json(page / "summary.json")["attacks"]
        assert {(row["arm"], row["stage"]) for row in rows} == {
            (arm, stage) for stage, arms in variant.tree.arms.items() for arm in arms if variant.tasks_of(stage)
        }
    assert (run.report / "index.html").stat().st_size > 1000
