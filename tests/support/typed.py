"""Answers that a person types at a terminal."""

import io


class Typed(io.StringIO):
    """What stands for standard input; its end is Ctrl-D."""

    def isatty(self) -> bool:
        return True
