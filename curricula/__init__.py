"""When should safety enter pretraining? A Slurm-native suite that carries out the study end to end."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for; "unknown" where the package is not installed, as in a snapshot."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata

    try:
        return metadata.version("safety-curricula")
    except metadata.PackageNotFoundError:
        return "unknown"
