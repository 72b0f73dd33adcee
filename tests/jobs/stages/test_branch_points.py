"""A branch point that was lost while arms still begin from it is trained again; one that nobody needs is not."""

import shutil

from run_folders import finish, new_run

from curricula.jobs.element import is_done
from curricula.model.checkpoints.folder import step_folder


def test_a_lost_branch_point_is_made_again_only_while_an_arm_begins_from_it(tmp_path):
    run, jobs = new_run(tmp_path / "run")
    segments = {segment.name: segment for segment in run.study.segments()}
    trunk = next(segment for segment in segments.values() if segment.branch == "trunk")
    job = next(job for job in jobs.values() if any(item.segment == trunk.name for item in job.elements))
    finish(run, job.name, "trunk")
    point = step_folder(run.branch("trunk") / "checkpoints", trunk.stop)
    assert not is_done(run, job, job.elements[0])
    point.mkdir(parents=True)
    assert is_done(run, job, job.elements[0])
    shutil.rmtree(point)
    for other in jobs.values():
        for element in other.elements:
            if element.segment and segments[element.segment].parent == trunk.name:
                finish(run, other.name, element.label)
    assert is_done(run, job, job.elements[0])
