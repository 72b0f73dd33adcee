"""The first step of `make`: which torch would be installed, and whether the disk holds it, before anything large is fetched."""

import importlib.util
import json
from collections import namedtuple

import pytest
from paths import ROOT

spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "env/bootstrap.py")
bootstrap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bootstrap)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A Linux machine without a GPU, and a stand-in for its environment's python: `answer(names by index)`."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setattr(bootstrap, "DRIVER", str(tmp_path / "none"))

    def answer(plain: list[str], cpu: list[str] | None):
        monkeypatch.setattr(bootstrap, "answers", lambda url: cpu is not None)
        reports = {"plain": plain, "cpu": cpu or []}
        for name, names in reports.items():
            (folder / name).write_text(json.dumps({"install": [{"metadata": {"name": one}} for one in names]}))
        python = folder / "bin/python"
        python.write_text(
            f'#!/bin/sh\ncase "$*" in *--dry-run*cpu*) cat {folder}/cpu;; *--dry-run*) cat {folder}/plain;; '
            f'*) echo "$*" > {folder}/installed;; esac\n'
        )
        python.chmod(0o755)
        return folder

    return answer


def test_the_build_for_cpus_is_taken_where_it_can_be_had(machine, capsys):
    folder = machine(["torch", "nvidia-cudnn-cu13"], ["torch"])
    bootstrap.choose_torch(str(folder), str(folder / "bin/python"))
    assert "about 0.7 GB to download, 3.0 GB on disk" in capsys.readouterr().out
    assert f"--index-url {bootstrap.TORCH_CPU} torch" in (folder / "installed").read_text()


def test_a_large_download_is_announced(machine, capsys):
    folder = machine(["torch", "nvidia-cudnn-cu13"], None)
    bootstrap.choose_torch(str(folder), str(folder / "bin/python"))
    said = capsys.readouterr().out
    assert "about 3.3 GB to download, 6.6 GB on disk" in said and "torch for CUDA" in said
    assert not (folder / "installed").exists()


def test_a_pip_that_has_the_build_for_cpus_already_is_left_alone(machine, capsys):
    folder = machine(["torch"], None)
    bootstrap.choose_torch(str(folder), str(folder / "bin/python"))
    said = capsys.readouterr().out
    assert "about 0.7 GB" in said and "CUDA" not in said and not (folder / "installed").exists()


def test_where_torch_is_there_nothing_is_announced(machine, capsys):
    folder = machine([], None)
    bootstrap.choose_torch(str(folder), str(folder / "bin/python"))
    assert capsys.readouterr().out == "" and not (folder / "installed").exists()


def test_a_disk_that_is_too_small_stops_it(machine, monkeypatch):
    folder = machine(["torch"], None)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda _: usage(10e9, 8.6e9, 1.4e9))
    with pytest.raises(SystemExit, match=r"the disk has 1.4 GB free; free 1.6 GB more"):
        bootstrap.choose_torch(str(folder), str(folder / "bin/python"))


def test_a_python_that_is_too_old_makes_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as old, pytest.raises(SystemExit, match="is too old; name 3.10 or newer"):
        old.setattr(bootstrap.sys, "version_info", (3, 9))
        bootstrap.make(str(tmp_path / "venv"), "")
    assert not (tmp_path / "venv").exists()
