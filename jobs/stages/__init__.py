"""The stages of a study, one file each. A new stage needs a file, a line here, and its jobs in `jobs/graph.py`."""

from curricula.jobs.stages.along import Along
from curricula.jobs.stages.base import Stage as Stage
from curricula.jobs.stages.base import Work as Work
from curricula.jobs.stages.evaluate import Evaluate
from curricula.jobs.stages.export import Export
from curricula.jobs.stages.fetch import Fetch
from curricula.jobs.stages.merge import Merge
from curricula.jobs.stages.midtrain import Midtrain
from curricula.jobs.stages.prepare import Prepare
from curricula.jobs.stages.pretrain import Pretrain
from curricula.jobs.stages.report import Report
from curricula.jobs.stages.tokenize import Tokenize
from curricula.jobs.stages.tune import Tune

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        *(Fetch(), Prepare(), Tokenize(), Pretrain(), Midtrain(), Tune(), Export()),
        *(Evaluate(), Along(), Merge(), Report()),
    )
}
