"""`curricula export` and `curricula import`: models out of a run and into one."""

import os

import pytest
from random_batches import RandomBatches, train_job
from run_folders import new_run

from curricula.curriculum.tokens.tokenizer import train_tokenizer
from curricula.jobs.cli.main import main
from curricula.model.train import train


@pytest.fixture
def branch(tmp_path, monkeypatch):
    """A trained branch of the newest of two runs."""
    monkeypatch.chdir(tmp_path)
    newest, _ = new_run(tmp_path / "runs/a-newest")
    older, _ = new_run(tmp_path / "runs/b-older")
    os.utime(older.root / "study.yaml", (1, 1))
    train_tokenizer(["a few words to make a tokenizer of"], 300, newest.tokenizer)
    train(train_job(newest.branch("full-20"), stop_step=1), RandomBatches())
    return newest.branch("full-20")


def test_a_model_is_exported_by_its_name_or_folder_and_what_was_exported_is_imported(branch, tmp_path, capsys):
    latest = branch / "checkpoints/step_00000001"
    for number, named in enumerate(["full-20", str(branch), str(branch / "checkpoints"), str(latest)]):
        assert main(["export", named, f"out/{number}"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"Hugging Face model: out/{number}, from ") and said.endswith("/checkpoints/step_00000001\n")
    weights = [(tmp_path / f"out/{number}/model.safetensors").read_bytes() for number in range(4)]
    assert len(set(weights)) == 1
    tokenizer = branch.parents[1] / "data/tokenizer"
    assert (tmp_path / "out/0/tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    for number, text in enumerate(["# A model of somebody's\n", None]):  # whatever else is in the folder
        card = tmp_path / f"out/{number}/README.md"
        card.write_text(text) if text else card.unlink()
        assert main(["export", "full-20", f"out/{number}"]) == 1
        assert f"out/{number}: exists and is not a model that was exported there" in capsys.readouterr().err
    (branch / "checkpoints/latest").unlink()
    assert main(["export", "full-20", "out/2"]) == 0 and capsys.readouterr().out

    assert main(["import", "out/0", "imported"]) == 0
    imported = capsys.readouterr().out.removeprefix("Megatron checkpoint: ").strip()
    assert main(["export", imported, "out/again"]) == 2
    assert "lies in no run folder with a tokenizer; name one with --tokenizer" in capsys.readouterr().err
    assert main(["export", f"{branch}-x", "out/again"]) == 2
    assert "full-20-x: no such folder; name the folder of a step" in capsys.readouterr().err
    assert main(["export", imported, "out/again", "--tokenizer", str(tokenizer)]) == 0
    assert (tmp_path / "out/again/model.safetensors").read_bytes() == weights[0]
