"""Whether a document or the server is at fault when there is no good reply.

A document that failed alone is a dead letter: asking again would only fail again. But a server that is down, or a model that
answers nothing as it should, would fail them all; then the run must end with the documents as they were. Which of both it is
shows when some other document gets a good reply. Even then a failure without any reply may be a short outage's.
"""

from __future__ import annotations

from dataclasses import dataclass

from curricula.curriculum.sources.documents import Document
from curricula.curriculum.synthesis.replies import Row
from curricula.errors import UserError


@dataclass(frozen=True)
class Failure:
    """A document without a good reply."""

    document: Document
    letter: Row  # its dead letter
    by_server: bool  # there was no reply at all


class Suspects:
    """The failures of which it is not yet known that the server is well. Methods return those of which it now is."""

    def __init__(self, patience: int, anything_good: bool):
        self.patience = patience  # so many in a row are the server's fault
        self.anything_good = (
            anything_good  # whether this server and model gave a good reply in this run or an earlier one
        )
        self._good_now = False
        self._failures: list[Failure] = []

    def succeeded(self) -> list[Failure]:
        """A good reply came: the server is well."""
        self.anything_good = self._good_now = True
        return self._clear()

    def failed(self, failure: Failure) -> list[Failure]:
        """A document failed. Raises UserError after too many in a row."""
        self._failures.append(failure)
        if self.anything_good and not self._any_by_server():
            return self._clear()
        if len(self._failures) >= self.patience:
            raise self._accusation()
        return []

    def ended(self) -> list[Failure]:
        """No more documents. Raises UserError when the server never answered."""
        if self._any_by_server() and not self._good_now:
            raise self._accusation()
        return self._clear()

    def _any_by_server(self) -> bool:
        return any(failure.by_server for failure in self._failures)

    def _clear(self) -> list[Failure]:
        failures, self._failures = self._failures, []
        return failures

    def _accusation(self) -> UserError:
        return UserError(
            f"{len(self._failures)} documents in a row came to nothing, the last with: "
            f"{self._failures[-1].letter['reason']}; "
            "see to the server, the model or the options, then the same command goes on"
        )
