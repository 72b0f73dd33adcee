"""A branch point that was lost while arms still begin from it is trained again; one that nobody needs is not."""

import shutil

from run_folders import finish, new_run

from curricula.jobs.completion import is_done
from curricula.jobs.graph import plan_study
from curricula.jobs.stages import Work
from curricula.model.checkpoints.folder import step_folder


def test_a_lost_branch_point_is_made_again_only_while_an_arm_begins_from_it(tmp_path):
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    trunk = next(segment for segment in plan.segments.values() if segment.branch == "trunk")
    work = next(Work(run, plan, job, element) for job, element in plan.elements() if element.segment == trunk.name)
    finish(run, work.job.name, "trunk")
    point = step_folder(run.branch("trunk") / "checkpoints", trunk.stop)
    assert not is_done(work)
    point.mkdir(parents=True)
    assert is_done(work)
    shutil.rmtree(point)
    for job, element in plan.elements():
        if element.segment and plan.segments[element.segment].parent == trunk.name:
            finish(run, job.name, element.label)
    assert is_done(work)
