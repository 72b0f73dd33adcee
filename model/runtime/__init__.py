"""What surrounds the training loop: its processes, its batches, its reports, its spikes, and what ends it early.

The names below need no torch.
"""

from curricula.model.runtime.stopping import Interrupted as Interrupted
from curricula.model.runtime.stopping import PeerLost as PeerLost
