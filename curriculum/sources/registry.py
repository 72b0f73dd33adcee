"""The file of public datasets and tuning sets (datasets.yaml), and the data folder from which they are read.

A data folder is a fictional world, the folder that the environment variable CURRICULA_DATA names, or one that `curricula
data fetch` filled.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from curricula.core_yaml import load_yaml
from curricula.errors import UserError

KNOWN: dict[str, Any] = load_yaml(Path(__file__).with_name("datasets.yaml").read_text(encoding="utf-8"))
"""The contents of datasets.yaml."""


def local_root() -> Path | None:
    """The folder that CURRICULA_DATA names, or None when datasets come from the Hugging Face hub."""
    folder = os.environ.get("CURRICULA_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise UserError(f"CURRICULA_DATA={folder}: no such folder; unset it to use the Hugging Face hub")
    return Path(folder).resolve()
