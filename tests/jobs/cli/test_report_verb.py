"""`curricula report`: one run, several, and one that is served."""

import json

from run_folders import new_run

from curricula.jobs.cli.main import main


def test_several_runs_get_their_own_pages_and_one_that_compares_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "curricula.eval.report.page.draw_figures", lambda shown, folder: {}
    )  # they take most of the time
    runs = [new_run(tmp_path / name)[0] for name in ("one", "two")]
    assert main(["report", *(str(run.root) for run in runs)]) == 0
    *pages, comparison = capsys.readouterr().out.replace("\n", "").split("Report: ")[-1].split("Comparison: ")
    assert comparison == str(tmp_path / "reports/one-and-two/index.html")
    for run in runs:
        assert "None of the paper’s 18 claims has been measured yet." in (run.report / "index.html").read_text()
        assert json.loads((run.report / "summary.json").read_text())["attacks"] == []
    assert "Studies compared" in (tmp_path / "reports/one-and-two/index.html").read_text()


def test_only_one_run_can_be_served(tmp_path, capsys):
    runs = [str(new_run(tmp_path / name)[0].root) for name in ("one", "two")]
    assert main(["report", *runs, "--serve"]) == 2
    assert "--serve shows one run, and 2 are named; leave the others out" in capsys.readouterr().err
