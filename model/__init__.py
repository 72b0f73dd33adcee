"""SmolLM2 on Megatron-core: configuration, training, distributed checkpoints, and conversion to and from Hugging Face.

The names below and the settings in `curricula.model.config` need no torch. Training is `curricula.model.train.train`;
`export_hf` and `import_hf` are in `curricula.model.convert`. These modules load torch and Megatron-core, which takes seconds.
"""

from curricula.model.config import PRESETS as PRESETS
from curricula.model.config import TrackingConfig as TrackingConfig
from curricula.model.config import TrainConfig as TrainConfig
from curricula.model.config import TrainJob as TrainJob
