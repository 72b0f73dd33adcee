"""`curricula report`: one run, several, and one that is served."""

import json
import os
import re
from pathlib import Path

from run_folders import new_run, report_progress
from small_studies import demo
from users import as_root

from curricula.eval.report.web.serve import LivePage
from curricula.jobs.cli.main import main
from curricula.jobs.study import parse_study, study_yaml


def test_several_runs_get_their_own_pages_and_one_that_compares_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("curricula.eval.report.figures.FIGURES", ())  # they take most of the time
    runs = [new_run(tmp_path / name)[0] for name in ("one", "two")]
    assert main(["report", *(str(run.root) for run in runs)]) == 0
    *pages, comparison = capsys.readouterr().out.replace("\n", "").split("Report: ")[-1].split("Comparison: ")
    assert comparison == str(tmp_path / "reports/one-and-two/index.html")
    for run in runs:
        assert "None of the 18 claims of Sam et al. has been measured." in (run.report / "index.html").read_text()
        assert json.loads((run.report / "summary.json").read_text())["attacks"] == []
    assert "Studies compared" in (tmp_path / "reports/one-and-two/index.html").read_text()


@as_root
def test_runs_of_colleagues_in_folders_of_one_name_keep_pages_of_their_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("curricula.eval.report.figures.FIGURES", ())
    for user, name in ((64001, "ann"), (64002, "bob")):
        run, _ = new_run(tmp_path / name / "demo")
        (run.root / "study.yaml").write_text(study_yaml(parse_study({**demo(), "name": name}, "x")))
        os.chown(run.root, user, user)
    assert main(["report", "ann/demo", "bob/demo"]) == 0
    pages = re.findall(r"Report: (\S+)/index.html", capsys.readouterr().out)
    assert [Path(page).name for page in pages] == ["demo", "demo-2"]
    titles = [re.search(r"<title>(\w+)", Path(page, "index.html").read_text()) for page in pages]
    assert [title and title[1] for title in titles] == ["ann", "bob"]


def test_a_sweep_is_compared_with_nothing(tmp_path, capsys):
    one, other = (new_run(tmp_path / name)[0] for name in ("one", "other"))
    swept = {**demo(), "sweep": {"pretraining.optimizer.lr": [1e-3, 3e-3]}}
    (other.root / "study.yaml").write_text(study_yaml(parse_study(swept, "x")))
    assert main(["report", str(one.root), str(other.root)]) == 2
    assert "a sweep has a report for each point" in " ".join(capsys.readouterr().err.split())


def test_only_one_run_can_be_served(tmp_path, capsys):
    runs = [str(new_run(tmp_path / name)[0].root) for name in ("one", "two")]
    assert main(["report", *runs, "--serve"]) == 2
    assert "--serve shows one run, and 2 were given; leave the others out" in capsys.readouterr().err
    assert main(["report", runs[0], "--port", "0"]) == 2 and not Path(runs[0], "report").exists()
    assert "--port has an effect only with --serve" in capsys.readouterr().err


def test_a_served_run_names_what_runs_or_waits_and_leaves_its_own_report_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("curricula.eval.report.figures.FIGURES", ())
    pages = []
    monkeypatch.setattr(
        LivePage, "serve", lambda self, interval_s: pages.append(self.page.decode()) or self._server.server_close()
    )
    run, jobs = new_run(tmp_path / "run")
    trunk = next(name for name in jobs if name.startswith("pretrain-trunk"))
    report_progress(run, trunk, "trunk", done=30, total=100)
    assert main(["report", str(run.root), "--serve", "--port", "0"]) == 0
    assert re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}\n", capsys.readouterr().out)
    assert re.search(rf"<li>{trunk} trunk: \w+, 30 of 100</li>", pages[0]) and 'id="live"' in pages[0]
    assert "connect-src" in pages[0] and not run.report.exists()
