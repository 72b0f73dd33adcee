"""Which texts share a row: best fit among a few open rows, in the order in which the texts come."""

from __future__ import annotations

from collections.abc import Iterable

OPEN_ROWS = 32  # more would pack hardly better, and would mix what comes early with what comes late


def pack(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    """Rows of text numbers, each text in one row, the lengths of a row at most `capacity` in sum; longer texts count as cut.

    A text goes into the fullest open row that has room for it, else into a new one; of more than `OPEN_ROWS` open rows
    the fullest is closed. A pure function of the lengths, so every process and every restart packs alike.
    """
    rows: list[list[int]] = []
    room: dict[int, int] = {}  # of the open rows
    for number, length in enumerate(lengths):
        length = min(length, capacity)
        fitting = [row for row, left in room.items() if left >= length]
        if fitting:
            row = min(fitting, key=room.__getitem__)
        else:
            row = len(rows)
            rows.append([])
            room[row] = capacity
            if len(room) > OPEN_ROWS:
                del room[min(room, key=room.__getitem__)]
        rows[row].append(number)
        room[row] -= length
    return rows
