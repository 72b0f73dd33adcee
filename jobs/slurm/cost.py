"""How many GPU-hours a submission may take."""

from __future__ import annotations

from collections.abc import Sequence

from curricula.jobs.graph import Job
from curricula.jobs.selection import Chosen
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.study import Study


def gpu_hours(study: Study, profile: Profile, jobs: Sequence[Job], chosen: Chosen) -> float:
    """Pretraining by its FLOPs at the utilisation the study expects; the other stages by their time limits, an upper bound."""
    budget, resources = study.budget, study.resources
    flops = study.model.resolve().flops_per_token(budget.sequence_length)
    segments = {segment.name: segment for segment in study.segments()}
    hours = 0.0
    for job in jobs:
        request = profile.request(job, study)
        for element in job.elements:
            if element.label not in chosen.get(job.name, ()):
                continue
            if element.segment:
                steps = segments[element.segment].stop - segments[element.segment].start
                work = steps * budget.step_tokens * flops
                hours += work / (resources.peak_tflops * 1e12 * resources.expected_mfu) / 3600
            else:
                hours += request.gpus * request.total_hours
    return hours
