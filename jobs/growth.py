"""What a run folder allows to change in its study: more seeds, more arms of its curriculum, and more stages after pretraining.
All else is another study."""

from __future__ import annotations

from typing import Any

import msgspec

from curricula.jobs.study import Study


def refusal(old: Study, new: Study) -> str:
    """Why a run of `old` cannot go on as one of `new`, such as "seed is 42 there and 43 now"; empty if it can."""
    seeds, new_seeds = ([one.seed for one in study.replicates] for study in (old, new))
    if seeds[0] != new_seeds[0]:
        what = "seed" if len(seeds) == len(new_seeds) == 1 else "the first of seeds"
        return f"{what} is {seeds[0]} there and {new_seeds[0]} now"
    if gone := [str(seed) for seed in seeds if seed not in new_seeds]:
        return f"it has seed {', '.join(gone)}, which seeds now lacks"
    if gone := [name for name in old.tree.stages if name not in new.tree.stages]:
        return f"it has stage {', '.join(gone)}, which stages now lacks"
    if changed := _first_difference(*_fixed(old, new)):
        return changed
    arms, new_arms = ({arm.key: arm for arm in study.arms} for study in (old, new))
    jobs, new_jobs = ({arm.key: name for name, group in study.groups.items() for arm in group} for study in (old, new))
    for name, arm in arms.items():
        if name not in new_arms:
            return f"it has arm {name}, which curriculum now lacks"
        if new_arms[name] != arm:
            return f"arm {name} would read another mix with the new starts"
        if new_jobs[name] != jobs[name]:
            return f"the jobs of arm {name} are named by {jobs[name]}% there and by {new_jobs[name]}% now"
    return _lost_start(old, new)


def _lost_start(old: Study, new: Study) -> str:
    """The new stage that would begin from a checkpoint which pretraining under `old` does not keep; empty if there is none."""
    ends: dict[str, set[int]] = {}
    for segment in old.segments:
        ends.setdefault(segment.branch, old.kept_steps(segment.branch)).add(segment.stop)
    for one in new.variants.values():
        for name, stage in one.tree.stages.items():
            step = one.budget.step_at(stage.at or 0)
            for arm in one.trainings if name not in old.tree.stages and stage.at is not None else ():
                branch = one.branch_at(arm, step)
                if arm.name in one.tree.arms[name] and step not in ends.get(branch, {step}):
                    return (
                        f"stages.{name} begins at step {step:,} of {branch}, whose checkpoint that study does not keep"
                    )
    return ""


def cut_branches(old: Study, new: Study) -> set[str]:
    """The branches of `old`'s training tree that `new` cuts before their end, to have new arms leave there."""
    ends = {segment.branch: segment.stop for segment in old.segments}
    known = {segment.name for segment in old.segments}
    added = [segment for segment in new.segments if segment.name not in known]
    return {segment.branch for segment in added if segment.stop < ends.get(segment.branch, 0)}


def _fixed(old: Study, new: Study) -> tuple[Any, Any]:
    """Both studies as plain values, without what may grow: of mappings by arm or intervention set the old entries remain."""
    plain: tuple[Any, Any] = msgspec.to_builtins(old), msgspec.to_builtins(new)
    sets = {*old.curriculum.interventions, *old.curriculum.arms}
    for study in plain:
        del study["seed"], study["seeds"], study["curriculum"]["starts"]
        if len({one.seed for one in old.replicates}) == 1:
            del study["replicate"]  # has had no effect yet
        for name in study["stages"].keys() - old.stages.keys():
            del study["stages"][name]
        stages = [*study["stages"].values(), *((study["tuning"] or {}).get(name) for name in ("instruct", "benign"))]
        by_set = [stage["tagged_harmful"] for stage in stages if stage and "tagged_harmful" in stage]
        for mapping in (*by_set, study["curriculum"]["interventions"], study["curriculum"]["arms"]):
            for name in mapping.keys() - sets:
                del mapping[name]
    return plain


def _first_difference(old: Any, new: Any, place: str = "") -> str:
    """The first key at which two plain values differ, with both values; empty when they are equal."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = _first_difference(old.get(key), new.get(key), f"{place}.{key}" if place else str(key))
            if found:
                return found
        return ""
    return "" if old == new else f"{place} is {old!r} there and {new!r} now"
