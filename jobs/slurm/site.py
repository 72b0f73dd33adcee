"""The limits of a site, as Slurm states them: what a submission would run into."""

from __future__ import annotations

import math
import re

import msgspec

from curricula.errors import UserError
from curricula.jobs.slurm.commands import call
from curricula.jobs.slurm.profile import Profile, Request


def within_array_limit(profile: Profile) -> Profile:
    """The profile with arrays no longer than the site's MaxArraySize, where Slurm tells it."""
    try:
        site = re.search(r"^MaxArraySize *= *([1-9]\d*)", call("scontrol", "show", "config"), re.MULTILINE)
    except UserError:
        return profile
    longest = min(profile.max_array_size, int(site[1])) if site else profile.max_array_size
    return msgspec.structs.replace(profile, max_array_size=longest)


def partition_minutes() -> dict[str, float]:
    """The longest time of each partition; the default one is also under "". None where Slurm does not answer."""
    try:
        listing = call("scontrol", "--oneliner", "show", "partition")
    except UserError:
        return {}
    found = {}
    for line in listing.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S+)", line))
        if "PartitionName" in fields and "MaxTime" in fields:
            minutes = _minutes(fields["MaxTime"])
            found[fields["PartitionName"]] = minutes
            if fields.get("Default") == "YES":
                found[""] = minutes
    return found


def too_long(request: Request, limits: dict[str, float]) -> str:
    """Why a job will not start in any of its partitions, in a sentence; empty if it can, as far as the limits tell."""
    names = (request.options.partition or "").split(",")
    longest = max(limits.get(name, math.inf) for name in names)
    if request.minutes <= longest:
        return ""
    where = f"partition {', '.join(names)}" if names != [""] else "the default partition"
    return (
        f"it asks for {request.minutes / 60:g} h, and {where} allows {longest / 60:g} h, so it will not start; "
        f"set stages.{request.section}.hours to at most {longest / 60:g}"
    )


def _minutes(text: str) -> float:
    """Slurm's DAYS-HOURS:MINUTES:SECONDS; infinite for UNLIMITED and anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60
