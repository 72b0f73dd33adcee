"""SmolLM2 on Megatron-core: its configuration, training, distributed checkpoints, and conversion to and from Hugging Face.

The names below need no torch. Training is `curricula.model.train.train`; `export_hf` and `import_hf` are in
`curricula.model.convert`. Both load torch and Megatron-core, which takes seconds.
"""

from curricula.model.config import PRESETS as PRESETS
from curricula.model.config import EngineConfig as EngineConfig
from curricula.model.config import ExecutionConfig as ExecutionConfig
from curricula.model.config import ModelConfig as ModelConfig
from curricula.model.config import OptimizerConfig as OptimizerConfig
from curricula.model.config import Rewind as Rewind
from curricula.model.config import ScheduleConfig as ScheduleConfig
from curricula.model.config import SpikeGuard as SpikeGuard
from curricula.model.config import TrackingConfig as TrackingConfig
from curricula.model.config import TrainConfig as TrainConfig
from curricula.model.config import TrainJob as TrainJob
