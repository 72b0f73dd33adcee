"""How text, times and counts look on a terminal."""

from __future__ import annotations

import math


def printable(text: str) -> str:
    """`text` with its control characters replaced: a terminal would obey them, and documents and logs may hold any."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def one_line(text: str) -> str:
    """`text` on one line, with its control characters replaced."""
    return printable(" ".join(text.split()))


def clock(seconds: float) -> str:
    """1:02:03 or 2:03, and 3d 04:05 from one day on; a dash if it is not finite."""
    if not math.isfinite(seconds):
        return "-"
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days:
        return f"{days}d {hours_of_day:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def age(seconds: float) -> str:
    """A duration in its largest unit: 8s, 3m, 5h, 2d."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def count(number: float) -> str:
    """Three digits and a unit: 950, 12.3k, 1.71B, 600B; a dash if it is not finite."""
    if not math.isfinite(number):
        return "-"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f}{unit}"
    return f"{number:.0f}"
