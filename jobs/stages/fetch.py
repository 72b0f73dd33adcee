"""Fetch: download one dataset from the Hugging Face hub into the run folder."""

from __future__ import annotations

from curricula.curriculum.sources.hub import fetch
from curricula.jobs.downloads import Wanted, study_downloads
from curricula.jobs.stages.base import Stage, Work
from curricula.progress import Progress


class Fetch(Stage):
    name, section, needs_torch = "fetch", "data", False

    def run(self, work: Work, progress: Progress) -> None:
        if not work.run.data_folder:  # otherwise the user provides the data
            wanted = _wanted(work)
            fetch(wanted.download, progress, wanted.rows)

    def is_complete(self, work: Work) -> bool:
        return bool(work.run.data_folder) or _wanted(work).download.finished.exists()


def _wanted(work: Work) -> Wanted:
    return next(item for item in study_downloads(work.study, work.run.data_root) if item.label == work.element.label)
