"""What others may do with files."""

from pathlib import Path


def open_to_others(folder: Path) -> list[str]:
    """`folder` and what it holds, as far as anyone but the owner has access."""
    return [str(path) for path in [folder, *folder.rglob("*")] if path.stat().st_mode & 0o077]


def not_the_teams(folder: Path, group: int) -> list[str]:
    """`folder` and what it holds, as far as a member of `group` cannot read and change it, or anyone else can open it.

    In a folder, a member must be able to make and delete files, and these must belong to the group."""
    found = []
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        allowed = 0o2070 if path.is_dir() else 0o060
        if status.st_gid != group or status.st_mode & allowed != allowed or status.st_mode & 0o007:
            found.append(f"{path} (group {status.st_gid}, mode {status.st_mode & 0o7777:o})")
    return found
