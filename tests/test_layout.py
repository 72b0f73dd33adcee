"""The structure that the documentation promises: imports point down and form no circle, and no folder has too many modules."""

import ast
import functools
import re
from collections import Counter
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

PACKAGE = ROOT / "curricula"
LAYERS = {"curriculum": 1, "model": 2, "eval": 2, "jobs": 3}
"""Foundations, the modules at the package's root, are layer 0. Packages on one layer do not import each other."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.glob("*.py"))}
for name in LAYERS:
    FILES |= {module_name(path): path for path in sorted((PACKAGE / name).rglob("*.py"))}


@functools.cache
def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


@functools.cache
def imports(name: str) -> set[str]:
    """The package's modules that the module `name` imports anywhere, in functions and for type checking too."""
    found = set()
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("curricula"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys() or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("curricula")}
    return found & FILES.keys()


def package_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "foundations"


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    own = package_of(name)
    for other in imports(name):
        theirs = package_of(other)
        assert theirs == own or LAYERS.get(theirs, 0) < LAYERS.get(own, 0), f"{name} imports {other}"


def test_no_module_imports_itself_through_others():
    graph = {name: imports(name) - {name} for name in FILES}
    while True:  # what imports nothing, and what nothing imports, is on no circle
        imported = set().union(*graph.values())
        rest = {name: others & graph.keys() for name, others in graph.items() if name in imported}
        rest = {name: others for name, others in rest.items() if others}
        if rest == graph:
            break
        graph = rest
    assert not graph, f"a circle among {', '.join(graph)}"


def test_no_folder_holds_more_than_fifteen_modules():
    crowded = {str(folder): count for folder, count in Counter(path.parent for path in FILES.values()).items() if count > 15}
    assert not crowded


def test_no_module_outside_the_stages_compares_their_names():
    asked = [
        f"{name}:{node.lineno}"
        for name in FILES
        if not name.startswith("curricula.jobs.stages")
        for node in ast.walk(parsed(name))
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "stage"
    ]
    assert not asked


def test_the_pinned_versions_are_within_the_ranges_of_setup_cfg_and_complete():
    lines = [line for line in (ROOT / "env/constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin for pin in map(Requirement, lines)}
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    named = "\n".join(
        [config["options"]["install_requires"], *(extras[name] for name in ("dev", "docs", "gguf", "lm-eval"))]
    ).splitlines()
    on = {"python_version": "3.11"}
    for wanted in (Requirement(line) for line in named if line.strip() and not line.startswith("#")):
        if wanted.marker and not wanted.marker.evaluate(on):
            continue
        (version,) = pinned[canonicalize_name(wanted.name)].specifier
        assert version.operator == "==" and "+" not in version.version and wanted.specifier.contains(version.version)
    assert all(pin.marker and pin.marker.evaluate(on) for pin in pinned.values())
    assert not any(pin.marker.evaluate({"python_version": other}) for pin in pinned.values() for other in ("3.10", "3.13"))


def test_only_settings_converts_by_msgspec_itself():
    """Which is not safe in threads; `curricula.settings` has `convert` and `decode` that are."""
    asked = [
        name
        for name, path in FILES.items()
        if re.search(r"msgspec\.(convert|json\.decode)\(.*type=|msgspec\.convert\(", path.read_text())
    ]
    assert asked == ["curricula.settings"]
