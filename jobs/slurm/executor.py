"""submitit's Slurm executor, made to submit elements of the graph: it writes the sbatch file, calls it and reads the number.

Nothing is pickled, and no submitit runs in the jobs: elements are named by their words, keep their results in the run folder,
and treat signals themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import submitit
from submitit.core.utils import UncompletedJobError

from curricula.errors import UserError
from curricula.jobs.slurm.commands import ControllerAway, is_away
from curricula.jobs.slurm.script import Options


class ElementExecutor(submitit.SlurmExecutor):
    """Submits one job array at a time. Scripts and logs lie in its folder, RUN/slurm."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._job = ""

    @classmethod
    def name(cls) -> str:
        return "slurm"

    @classmethod
    def affinity(cls) -> int:
        return 2  # whether Slurm is there is asked before, in words

    def prepare(self, job: str, count: int, options: Options, throttle: int | None) -> None:
        """Say how many elements of which job the next array has, and which options of sbatch it takes."""
        self._job = job
        named = {name: value for name, value in options.items() if name.replace("-", "_") in self._valid_parameters()}
        self.parameters = {
            **{name.replace("-", "_"): value for name, value in named.items()},
            "additional_parameters": {name: value for name, value in options.items() if name not in named},
            "map_count": count,
            "array_parallelism": throttle or count,
            "stderr_to_stdout": True,
            "use_srun": False,  # the body calls it
            "wckey": None,
        }

    def text(self, body: str) -> str:
        """The sbatch file."""
        return self._make_submission_file_text(body, "")

    def submit_body(self, body: str) -> str:
        """Hand the prepared array to sbatch; returns its number.

        Raises ControllerAway when Slurm could not be reached, where it stays open whether it has the job, and UserError with
        sbatch's words when it was refused.
        """
        try:
            return self._submit_command(body).job_id
        except UncompletedJobError as error:
            said = _last_words(str(error.__cause__ or error))
            if is_away(said):
                raise ControllerAway(said) from None
            raise UserError(f"sbatch refused job {self._job}: {said}; mend the profile or the study") from None

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        submission_file_path.chmod(0o700)
        # A command that was itself given inside a Slurm job must not hand that job's variables on.
        inside = [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]
        return [
            "env",
            *(word for name in inside for word in ("--unset", name)),
            *super()._make_submission_command(submission_file_path),
        ]


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if "sbatch: error" in line] or lines[-1:]
    return "; ".join(line.replace("sbatch: error: ", "") for line in said)
