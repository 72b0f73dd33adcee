"""The wheel, installed outside the checkout: it contains all it needs and no importable name but `curricula`."""

import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from curricula.eval.judges.templates import TEMPLATES

WORKING_FOLDERS = shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory) -> Path:
    """The programs of an environment that holds the wheel and, beside it, this environment's other packages."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    shutil.copytree(ROOT, source, symlinks=True, ignore=WORKING_FOLDERS)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True)
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next(environment.glob("lib/python*/site-packages"))
    # A path in a .pth file is searched, but the .pth files there, such as that of an editable install, are not read.
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", environment, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    return environment / "bin"


def run(program: Path, *args: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([program, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_papers_study_is_shown_to_slurm(bin_folder, tmp_path):
    cluster = ["--cluster", "slurm", "--profile", "h100-4x8", "--run", tmp_path / "run"]
    shown = run(bin_folder / "curricula", "submit", "paper", *cluster, "--dry-run", cwd=tmp_path)
    assert "39 sbatch calls" in shown and "#SBATCH" in shown


@pytest.mark.slow
def test_the_papers_study_is_planned_and_rendered(bin_folder, tmp_path):
    command = bin_folder / "curricula"
    assert "data-20" in run(command, "plan", "paper", cwd=tmp_path)
    cluster = ["--profile", "h100-4x8", "--run", tmp_path / "run"]
    assert "39 job arrays" in run(command, "render", "paper", tmp_path / "scripts", *cluster, cwd=tmp_path)


def test_only_the_package_itself_can_be_imported_and_the_reports_scripts_are_in_it(bin_folder, tmp_path):
    names = ("eval", "model", "jobs", "curriculum")
    code = f"import curricula.model; from importlib.util import find_spec; print([n for n in {names} if find_spec(n)]); "
    code += "from curricula.eval.report.web.data import program; print('Plot.plot' in program() and 'd3js' in program())"
    assert run(bin_folder / "python", "-c", code, cwd=tmp_path).split() == ["[]", "True"]


def test_the_version_is_the_distributions(bin_folder, tmp_path):
    (records,) = bin_folder.parent.glob("lib/python*/site-packages/safety_curricula-*.dist-info")
    version = records.name.removeprefix("safety_curricula-").removesuffix(".dist-info")
    assert run(bin_folder / "curricula", "--version", cwd=tmp_path) == f"curricula {version}\n"


def test_the_licence_and_the_sources_of_the_judge_templates_are_in_it(bin_folder):
    (records,) = bin_folder.parent.glob("lib/python*/site-packages/safety_curricula-*.dist-info")
    found = {path.name: path.read_text(encoding="utf-8") for path in records.rglob("*") if path.is_file()}
    assert "Apache License\n                           Version 2.0" in found["LICENSE"]
    assert "END OF TERMS AND CONDITIONS" in found["LICENSE"]
    assert [name for name in TEMPLATES if not re.search(rf"\b{name}\b", found["NOTICE"])] == []
    assert "Permission is hereby granted, free of charge" in found["NOTICE"]
    scripts = {path.name for path in (ROOT / "eval/report/vendor").iterdir()}
    assert scripts == {"d3.min.js", "plot.min.js"} and all(name in found["NOTICE"] for name in scripts)
