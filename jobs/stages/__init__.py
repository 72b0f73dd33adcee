"""The stages of a study. A new stage needs its class, a line here, and its jobs in `jobs/graph.py`."""

from curricula.jobs.stages.base import Stage
from curricula.jobs.stages.base import Training as Training
from curricula.jobs.stages.base import Work as Work
from curricula.jobs.stages.data import Fetch, Prepare, Tokenize
from curricula.jobs.stages.evaluate import Along, Evaluate, Merge
from curricula.jobs.stages.pretrain import Pretrain
from curricula.jobs.stages.report import Report
from curricula.jobs.stages.tune import Export, Midtrain, Tune

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        *(Fetch(), Prepare(), Tokenize(), Pretrain(), Midtrain(), Tune(), Export()),
        *(Evaluate(), Along(), Merge(), Report()),
    )
}
