"""Whether a document or the server is at fault when there is no good reply.

A document that failed alone is a dead letter: asking again would only fail again. But a server that is down, or a model that
answers nothing as it should, would fail them all; then the run must end with the documents as they were. Which of both it is
shows when some other document gets a good reply.
"""

from __future__ import annotations

from curriculum.errors import UserError
from curriculum.synthesis.replies import Row


class Suspects:
    """The dead letters that are not yet known to be the documents' own fault. Methods return those that now are."""

    def __init__(self, patience: int, anything_good: bool):
        self.patience = patience  # so many in a row are the server's fault
        self.anything_good = (
            anything_good  # whether this server and model gave a good reply in this run or an earlier one
        )
        self._good_now = False
        self._rows: list[Row] = []
        self._by_server = False

    def succeeded(self) -> list[Row]:
        """A good reply came: the server is well."""
        self.anything_good = self._good_now = True
        return self._clear()

    def failed(self, row: Row, by_server: bool) -> list[Row]:
        """A document failed; `by_server` when there was no reply at all. Raises UserError after too many in a row."""
        self._rows.append(row)
        self._by_server |= by_server
        if self.anything_good and not self._by_server:
            return self._clear()
        if len(self._rows) >= self.patience:
            raise self._accusation()
        return []

    def ended(self) -> list[Row]:
        """No more documents. Raises UserError when the server never answered."""
        if self._by_server and not self._good_now:
            raise self._accusation()
        return self._clear()

    def _clear(self) -> list[Row]:
        rows, self._rows, self._by_server = self._rows, [], False
        return rows

    def _accusation(self) -> UserError:
        return UserError(
            f"{len(self._rows)} documents in a row came to nothing, the last with: {self._rows[-1]['reason']}; "
            "see to the server, the model or the options, then the same command goes on"
        )
