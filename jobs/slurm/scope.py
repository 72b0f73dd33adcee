"""Which elements of the graph a submission is about: all, or what --only, --from and --arms name."""

from __future__ import annotations

from collections.abc import Sequence

from curricula.curriculum.plan import branch_of
from curricula.errors import UsageError
from curricula.jobs.graph import Element, Job
from curricula.jobs.study import Study

Chosen = dict[str, tuple[str, ...]]
"""Job name -> labels of its elements, in the graph's order."""


def choose(
    study: Study,
    jobs: Sequence[Job],
    only: Sequence[str] = (),
    start: str | None = None,
    arms: Sequence[str] = (),
) -> Chosen:
    """The elements of the jobs that `only` names, from the first job that `start` names on, for `arms`; all by default.

    `only` and `start` name stages, kinds of models or jobs. Arms bring the trunk that leads to them, and the data. Raises
    UsageError for names that the study does not have.
    """
    known = dict.fromkeys([job.stage for job in jobs] + [job.elements[0].kind for job in jobs if job.stage == "tune"])
    for option, names in (("--only", only), ("--from", [start] if start else [])):
        for name in names:
            if name not in known and name not in [job.name for job in jobs]:
                raise UsageError(f"{option} {name!r}: choose a stage of {', '.join(known)}, or the name of a job")
    have = [arm.name for arm in study.arms()]
    for name in arms:
        if name not in have:
            raise UsageError(f"--arms {name!r}: not in this study; its arms are {', '.join(have)}")
    first = next((place for place, job in enumerate(jobs) if start and _is_named(job, start)), 0)
    segments = _segments_of(study, arms) if arms else None
    chosen = {}
    for job in jobs[first:]:
        if only and not any(_is_named(job, name) for name in only):
            continue
        labels = tuple(element.label for element in job.elements if _is_for(element, arms, segments))
        if labels:
            chosen[job.name] = labels
    if not chosen:
        raise UsageError("--only, --from and --arms leave nothing to submit; leave one of them out")
    return chosen


def _is_named(job: Job, name: str) -> bool:
    return name in (job.name, job.stage) or (job.stage == "tune" and name == job.elements[0].kind)


def _is_for(element: Element, arms: Sequence[str], segments: set[str] | None) -> bool:
    if segments is not None and element.segment:
        return element.segment in segments
    return not arms or not element.arm or element.arm in arms


def _segments_of(study: Study, arms: Sequence[str]) -> set[str]:
    """The segments that train `arms`: their own and all those these begin from."""
    segments = study.segments()
    by_name = {segment.name: segment for segment in segments}
    lines = {branch_of(study.arm(name)) for name in arms}
    wanted: set[str] = set()
    todo = [segment.name for segment in segments if segment.branch in lines]
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo += [parent] if (parent := by_name[name].parent) else []
    return wanted
