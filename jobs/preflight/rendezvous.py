"""How the processes of a job exchange values before they open a process group: through a store that rank 0 serves.

Unlike a collective, it tells which processes are missing.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from curricula.model.runtime import PeerLost
from curricula.settings import decode

if TYPE_CHECKING:
    from torch.distributed import Store

    from curricula.model.runtime.distributed import Ranks

GOODBYE_S = 20.0
"""How long rank 0 waits for the others to read its last value: when it ends, the store does."""
Value = TypeVar("Value")


class Rendezvous:
    """Values by name, as JSON. Raises PeerLost when the store cannot be opened or reached within `patience_s`: another start,
    with another port or without that node, may succeed."""

    def __init__(self, ranks: Ranks, patience_s: float):
        from torch.distributed import TCPStore

        assert ranks.master is not None  # there are several processes
        host, _, port = ranks.master.rpartition(":")
        address = f"{host}:{int(port) + 1}"  # the next port: the training's own store comes later
        self.rank, self.size, self.patience_s = ranks.rank, ranks.size, patience_s
        patience = datetime.timedelta(seconds=patience_s)
        try:
            self.store: Store = TCPStore(
                host, int(port) + 1, ranks.size, ranks.rank == 0, patience, wait_for_workers=False
            )
        except RuntimeError as error:
            what = "opened" if ranks.rank == 0 else "reached"
            raise PeerLost(
                f"{address}: the store of the preflight cannot be {what} ({str(error).splitlines()[0]})"
            ) from None

    def put(self, name: str, value: object) -> None:
        self.store.set(name, msgspec.json.encode(value).decode())

    def get(self, name: str, kind: type[Value]) -> Value:
        """The value of this name; waits for it."""
        return decode(self.store.get(name), kind)

    def put_own(self, name: str, value: object) -> None:
        """This rank's value of a name that each rank has."""
        self.put(f"{name}/{self.rank}", value)

    def gather(self, name: str, kind: type[Value]) -> dict[int, Value]:
        """Every rank's own value; without the ranks that put none within `patience_s`."""
        missing = self._missing(name, self.patience_s)
        return {rank: self.get(f"{name}/{rank}", kind) for rank in range(self.size) if rank not in missing}

    def broadcast(self, name: str, kind: type[Value], value: Value | None) -> Value:
        """Rank 0's `value`, in every process; rank 0 stays until all have read it.

        Raises PeerLost when rank 0 ended before it put one.
        """
        if self.rank == 0:
            assert value is not None
            self.put(name, value)
            self.put_own(f"{name} received", True)
            self._missing(f"{name} received", GOODBYE_S)
            return value
        try:
            self.store.wait([name], datetime.timedelta(seconds=2 * self.patience_s))
            received = self.get(name, kind)
            self.put_own(f"{name} received", True)
        except RuntimeError:  # torch's DistError among them
            raise PeerLost("the first process ended without a verdict; see the log of rank 0") from None
        return received

    def _missing(self, name: str, patience_s: float) -> Sequence[int]:
        """The ranks that have not put their own value of this name in time."""
        deadline = time.monotonic() + patience_s
        missing = list(range(self.size))
        while True:
            missing = [rank for rank in missing if not self.store.check([f"{name}/{rank}"])]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.01)
