"""What the tasks of an evaluation ask, how much of it, and in which files their rows lie."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from curricula.eval.capability.settings import Capability
from curricula.eval.config import Attacks, EvalConfig, Gcg
from curricula.eval.decoding.registry import DECODERS
from curricula.eval.tasks import ROW_FILE, TASKS, EvalTask, row_files

CONFIG = EvalConfig(
    benchmarks=("harmbench",),
    prompts_per_benchmark=11,
    overrefusal_benchmark="xstest",
    overrefusal_prompts=12,
    gcg=Gcg(benchmark="advbench", prompts=13),
    attacks=Attacks(benchmarks=("tdc",), prompts=14, artifacts={"pair": "pair.json"}, suffixes_of=("early-12.5",)),
    capability=Capability(tasks=("arc_easy",)),
    shards={"gcg": 2},
)
ASKED = {
    "attack": ("harmbench", 11),
    "overrefusal": ("xstest", 12),
    "gcg": ("advbench", 13),
    "artifacts": ("pair", 14),
    "transfer": ("early-12.5", 13),  # of the prompts that have a suffix
    "probes": ("", None),
    "capability": ("arc_easy", None),
}


@pytest.mark.parametrize("most", [None, 1, 12, 99])
def test_every_task_asks_its_own_prompts_and_no_more_of_them_than_its_setting_and_the_command_say(most):
    for element in CONFIG.battery(TASKS, raw=False, most=most):
        benchmark, limit = ASKED.get(element.task.kind, ("tdc", 14))
        assert element.benchmark == benchmark
        assert element.limit == (most if limit is None else limit if most is None else min(limit, most))
        assert not benchmark or ROW_FILE.fullmatch(element.path(Path("m")).name)


def test_a_task_is_shared_by_as_many_elements_as_asked_for_and_left_out_without_its_settings():
    names = [element.name for element in CONFIG.battery(["gcg", "attacks-topk"], raw=True)]
    assert names == ["gcg/advbench.0-of-2", "gcg/advbench.1-of-2", "attacks-topk/jb_completions"]
    without = EvalConfig(gcg=None, probes=None, capability=None)
    assert not without.battery(["gcg", "probes", "capability"], raw=False)


def test_the_benchmarks_that_are_fetched_are_those_that_tasks_read():
    asked = CONFIG.battery(["attacks-topk", "artifacts-topk", "transfer-topk", "ablation-topk", "capability"], raw=False)
    assert CONFIG.benchmarks_of(asked) == ["harmbench", "tdc", "advbench", "alpaca"]
    assert CONFIG.benchmarks_of(asked[:3]) == ["harmbench", "advbench"]  # suffixes of another arm follow GCG's prompts


def test_the_search_over_candidates_has_both_pools_and_twice_to_ten_times_the_beams():
    settings = CONFIG.decoder_settings(TASKS["safebeam-candidates"])
    assert [one.candidates / one.beams for one in settings] == [2, 5, 10] * 2
    assert [one.pool for one in settings] == ["all"] * 3 + ["beam"] * 3
    assert CONFIG.decoder_settings(TASKS["attacks-safebeam"]) == [CONFIG.safebeam]


def test_shards_of_a_benchmark_that_is_there_whole_and_files_that_hold_no_answers_are_not_merged(tmp_path):
    folder = tmp_path / "gcg"
    folder.mkdir()
    kept = ["a", "b.0-of-2", "b.1-of-2", "full-12.5", "full-7.5.0-of-2", "full-7.5.1-of-2"]
    for name in (*kept, "a.0-of-2", "full-12.5.0-of-2", "a.suffixes", "b.unused", "b.1-of-2.unused", "full-12.5.unused"):
        (folder / f"{name}.jsonl").touch()
    assert [path.stem for path in row_files(tmp_path, TASKS["gcg"])] == kept
    # What was asked now is not what the same benchmark gave as a whole before.
    asked = [EvalTask(TASKS["gcg"], "a", shard=shard, shards=2) for shard in range(2)]
    assert [path.stem for path in row_files(tmp_path, TASKS["gcg"], asked)] == ["a.0-of-2", *kept[1:]]


def test_a_decoder_that_cannot_be_used_is_refused_where_only_a_stages_own_tasks_name_it(monkeypatch):
    broken = dataclasses.replace(DECODERS["greedy"], problem="decoder 'greedy': cannot be imported")
    monkeypatch.setitem(DECODERS, "greedy", broken)
    with pytest.raises(ValueError, match="decoder 'greedy': cannot be imported"):
        CONFIG.check_tasks(["attacks-greedy"])
