"""Where the processes of a job leave word for each other before they can communicate in earnest: a store that rank 0 serves.

Unlike a collective, it tells who is missing.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from curricula.model.runtime import PeerLost

if TYPE_CHECKING:
    from torch.distributed import Store

    from curricula.model.runtime.distributed import Ranks

GOODBYE_S = 20.0
"""How long rank 0 stays for the others to hear it: when it ends, the store does."""
Word = TypeVar("Word")


class Rendezvous:
    """Words by name, as JSON. Raises PeerLost when the store cannot be opened or reached within `patience_s`: another start,
    with another port or without that node, may do better."""

    def __init__(self, ranks: Ranks, patience_s: float):
        from torch.distributed import TCPStore

        assert ranks.master is not None  # there are several processes
        host, _, port = ranks.master.rpartition(":")
        place = f"{host}:{int(port) + 1}"  # the next port: the training's own store comes later
        self.rank, self.size, self.patience_s = ranks.rank, ranks.size, patience_s
        patience = datetime.timedelta(seconds=patience_s)
        try:
            self.store: Store = TCPStore(
                host, int(port) + 1, ranks.size, ranks.rank == 0, patience, wait_for_workers=False
            )
        except RuntimeError as error:
            what = "opened" if ranks.rank == 0 else "reached"
            raise PeerLost(
                f"{place}: the processes' meeting place cannot be {what} ({str(error).splitlines()[0]})"
            ) from None

    def say(self, name: str, word: object) -> None:
        self.store.set(name, msgspec.json.encode(word).decode())

    def said(self, name: str, kind: type[Word]) -> Word:
        """A word that is known to be there."""
        return msgspec.json.decode(self.store.get(name), type=kind)

    def of_all(self, name: str, kind: type[Word]) -> dict[int, Word]:
        """What each rank says under `name`; without those that are silent for `patience_s`."""
        silent = self._silent(name, self.patience_s)
        return {rank: self.said(f"{name}/{rank}", kind) for rank in range(self.size) if rank not in silent}

    def say_own(self, name: str, word: object) -> None:
        self.say(f"{name}/{self.rank}", word)

    def announced(self, name: str, kind: type[Word], word: Word | None) -> Word:
        """What rank 0 announces as `word`, the same in every process; rank 0 stays until all have heard it.

        Raises PeerLost when rank 0 ended before.
        """
        if self.rank == 0:
            assert word is not None
            self.say(name, word)
            self.say_own(f"{name} heard", True)
            self._silent(f"{name} heard", GOODBYE_S)
            return word
        try:
            self.store.wait([name], datetime.timedelta(seconds=2 * self.patience_s))
            heard = self.said(name, kind)
            self.say_own(f"{name} heard", True)
        except RuntimeError:  # torch's DistError among them
            raise PeerLost("the first process is gone without a word; see the log of rank 0") from None
        return heard

    def _silent(self, name: str, patience_s: float) -> Sequence[int]:
        """The ranks that have not said `name` in time."""
        deadline = time.monotonic() + patience_s
        silent = list(range(self.size))
        while True:
            silent = [rank for rank in silent if not self.store.check([f"{name}/{rank}"])]
            if not silent or time.monotonic() > deadline:
                return silent
            time.sleep(0.01)
