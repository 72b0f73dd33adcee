"""Checkpoints: their folder (`folder`), saving and loading them (`checkpoint`), reading their pickles as data (`pickles`), and
writing in the background (`writer`).

The names below need no torch; the other modules do.
"""

from curricula.model.checkpoints.folder import CheckpointInfo as CheckpointInfo
from curricula.model.checkpoints.folder import latest_checkpoint as latest_checkpoint
from curricula.model.checkpoints.folder import read_info as read_info
from curricula.model.checkpoints.folder import require_checkpoint as require_checkpoint
from curricula.model.checkpoints.folder import step_folder as step_folder
