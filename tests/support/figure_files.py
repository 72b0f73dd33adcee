"""Which files a report's figures are written to. The page shows the SVG alone; PNG and PDF take most of a report's time."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from curricula.eval.report import figures

EVERY_FORMAT = dict(figures.FORMATS)


@contextmanager
def written_as(*suffixes: str) -> Iterator[None]:
    """For the block's duration, figures are written in these formats only, such as ".svg"."""
    with mock.patch.object(figures, "FORMATS", {suffix: EVERY_FORMAT[suffix] for suffix in suffixes}):
        yield
