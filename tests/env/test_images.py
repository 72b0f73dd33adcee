"""The recipes of the images in env/container/, and the profiles that use them."""

import re

import pytest
import yaml
from paths import ROOT
from small_studies import FOR_32_GPUS

from curricula.jobs.cli.main import main

CONTAINER = ROOT / "env" / "container"


def test_both_recipes_make_the_same_image():
    docker, apptainer = (CONTAINER / "Dockerfile").read_text(), (CONTAINER / "curricula.def").read_text()
    (base,) = re.findall("^ARG BASE=(.*)", docker, re.MULTILINE)
    assert f"From: {base}\n" in apptainer
    (packages,) = re.findall("no-install-recommends .\n +(.*python3.12-venv)", docker)
    assert packages in apptainer
    for text in (docker, apptainer):
        assert re.search("/opt/source/env/gpu/install /opt/curricula --cuda .* --python python3.12", text)


@pytest.mark.parametrize("kind", ["pyxis", "apptainer"])
def test_the_profiles_with_an_image_render_and_take_its_interpreter(tmp_path, kind):
    study, run, out = ROOT / "jobs/studies/demo.yaml", tmp_path / "run", tmp_path / "out"
    assert main(["render", str(study), str(out), "--profile", f"h100-{kind}", "--run", str(run), *FOR_32_GPUS]) == 0
    text = (out / "02-pretrain-trunk-100.sbatch").read_text()
    image = yaml.safe_load((ROOT / f"env/profiles/h100-{kind}.yaml").read_text())["container"]["image"]
    assert {"pyxis": f"--container-image={image} ", "apptainer": f" --nv {image} "}[kind] in text
    assert f" /opt/curricula/bin/python {run}/code/" in text
