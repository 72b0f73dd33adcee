"""What others may do with files."""

from pathlib import Path


def open_to_others(folder: Path) -> list[str]:
    """`folder` and what it holds, as far as anyone but the owner has access."""
    return [str(path) for path in [folder, *folder.rglob("*")] if path.stat().st_mode & 0o077]
