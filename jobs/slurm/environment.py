"""Variables of the user's shell that must not reach Slurm's commands or the jobs.

Slurm reads variables such as SBATCH_PARTITION, SBATCH_EXPORT or SQUEUE_STATES as options, which override those in a script; a
shell on a node may also hold the ranks' variables of another job. Profile and study alone decide what a job asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

RANKS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""A rank's variables, which torchrun sets. A profile's `environment` may set some for the jobs."""
OPTIONS = ("SBATCH", "SRUN", "SLURM", "SALLOC", "SQUEUE", "SACCT", "SCANCEL", "SCONTROL")
"""Variables whose names begin so are options of Slurm's commands, or describe an allocation."""
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS")
"""Where Slurm's controller is, and who calls it."""
IGNORED = f"^(({'|'.join(OPTIONS)})_.*|TORCHELASTIC_.*|{'|'.join(RANKS)})$"
"""The names of all these, as an expression of Python's and of bash's."""


def ignored(environment: Mapping[str, str]) -> list[str]:
    """The variables that Slurm's commands and the jobs do not get."""
    return sorted(name for name in environment if re.match(IGNORED, name) and name not in KEPT)


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of Slurm's commands."""
    dropped = set(ignored(environment))
    return {name: value for name, value in environment.items() if name not in dropped}


def ignored_explained(environment: Mapping[str, str]) -> str:
    """One line that names the ignored variables that would have changed jobs; empty if there are none.

    Inside an allocation the SLURM_ variables describe that allocation, and nobody set them to change anything.
    """
    described = ("SLURM_",) if "SLURM_JOB_ID" in environment else ()
    readers = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", *described)
    names = [name for name in ignored(environment) if not name.startswith(readers)]
    return f"Ignored variables of this shell: {', '.join(names)}. The profile decides." if names else ""
