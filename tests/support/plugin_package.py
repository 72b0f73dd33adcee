"""An installed package with entry points, made in a folder that a test puts on the path."""

from __future__ import annotations

from pathlib import Path


def install(folder: Path, module: str, code: str, entry_points: str, version: str = "1.0") -> Path:
    """Write the package `module` with its metadata into `folder`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    metadata = folder / f"{module}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    return folder
