"""Checkpoints: their folder (`folder`), what they hold and how it is read, as data (`checkpoint`), and saving them in the
background (`writer`).

The names below need no torch; the other modules do.
"""

from curricula.model.checkpoints.folder import CheckpointInfo as CheckpointInfo
from curricula.model.checkpoints.folder import latest_checkpoint as latest_checkpoint
from curricula.model.checkpoints.folder import read_info as read_info
from curricula.model.checkpoints.folder import require_checkpoint as require_checkpoint
from curricula.model.checkpoints.folder import step_folder as step_folder
