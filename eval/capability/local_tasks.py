"""Task files of the user's, in lm_eval's format, and own sets of questions, as configurations for lm_eval.

A task file is data here: what lm_eval would run as code (`!function`, `include`, metrics from the hub) is refused, and its
templates are rendered in jinja's sandbox. Data files lie in the folder of the task file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from curricula.errors import UserError
from curricula.eval.capability.settings import PUBLISHED, Capability
from curricula.settings import read_yaml

# fmt: off
KEYS = frozenset((
    "task", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split",
    "fewshot_split", "description", "doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter",
    "fewshot_delimiter", "fewshot_config", "num_fewshot", "output_type", "generation_kwargs", "filter_list",
    "metric_list", "metadata",
))
# fmt: on
"""What a task file may hold."""
METRICS = ("acc", "acc_norm", "exact_match")
METRIC_KEYS = {"metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "ignore_numbers"}
BUILDERS = ("json", "csv", "parquet")


class LocalTask(NamedTuple):
    config: dict[str, Any]
    """As lm_eval takes it."""
    digest: str
    """Of the task and its data."""


def read_task(path: Path) -> LocalTask:
    """The task in `path`; raises UserError that names the file and the key."""
    raw = read_yaml(path, "no such task file")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no task; write task, dataset_path, doc_to_text and doc_to_target there")
    if unknown := sorted(map(str, raw.keys() - KEYS)):
        raise UserError(f"{path}: key {unknown[0]!r} is not used here; a task file has {', '.join(sorted(KEYS))}")
    if raw.get("task") != path.stem:
        raise UserError(f"{path}: task is {raw.get('task')!r}; name it {path.stem}, as its file")
    metrics = raw.get("metric_list")
    if not isinstance(metrics, list) or not metrics:
        raise UserError(f"{path}: metric_list is missing; write a list such as [{{metric: acc}}]")
    for metric in metrics:
        is_known = isinstance(metric, dict) and metric.get("metric") in METRICS and metric.keys() <= METRIC_KEYS
        if not is_known or metric.get("aggregation", "mean") != "mean":
            raise UserError(
                f"{path}: metric_list holds {metric!r}; take one of {', '.join(METRICS)}, whose aggregation is mean"
            )
    if raw.get("dataset_path") not in BUILDERS:
        raise UserError(
            f"{path}: dataset_path is {raw.get('dataset_path')!r}; write {', '.join(BUILDERS)} for files beside it"
        )
    files = _data_files(path, raw.get("dataset_kwargs"))
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode())
    for found in files.values():
        for file in found:
            digest.update(file.read_bytes())
    paths = {split: list(map(str, found)) for split, found in files.items()}
    return LocalTask({**raw, "dataset_kwargs": {"data_files": paths}}, digest.hexdigest())


def _data_files(path: Path, given: Any) -> dict[str, list[Path]]:
    """The data files of each split; all must be files within the folder of the task."""
    named = given.get("data_files") if isinstance(given, dict) and given.keys() == {"data_files"} else None
    if not isinstance(named, dict) or not named:
        raise UserError(
            f"{path}: dataset_kwargs is {given!r}; write data_files with a file for each split, and nothing else"
        )
    found: dict[str, list[Path]] = {}
    for split, names in named.items():
        for name in names if isinstance(names, list) else [names]:
            file = (path.parent / str(name)).resolve()
            if not file.is_relative_to(path.parent.resolve()) or not file.is_file():
                raise UserError(f"{path}: data_files names {name!r}; put a file of this name beside the task file")
            found.setdefault(str(split), []).append(file)
    return found


def check_task(name: str, settings: Capability, own: Container[str]) -> None:
    """Raise UserError where lm_eval is missing, a task is unknown or its file damaged: before a model is loaded."""
    require_lm_eval()
    if name in own:
        return
    if file := settings.local_file(name):
        read_task(file)
    if file or name in PUBLISHED:
        return
    if name not in task_manager(name, is_local=False).all_tasks:
        where = f"no {name}.yaml is in {settings.folder}" if settings.folder else "capability.folder names no folder"
        raise UserError(
            f"capability task {name!r} is not one of lm_eval's, and {where}; `lm_eval ls tasks` lists lm_eval's tasks"
        )


def task_manager(name: str, is_local: bool) -> Any:
    """lm_eval's manager of tasks, which knows `name` if lm_eval has it."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    if is_local or name in PUBLISHED:
        folders = [] if is_local else [root / PUBLISHED[name].folder]
        return lm_eval.tasks.TaskManager(include_defaults=False, include_path=folders)
    return lm_eval.tasks.TaskManager()


def require_lm_eval() -> str:
    """The version of lm_eval."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("capability needs lm_eval: `pip install safety-curricula[lm-eval]`") from None


def question_task(name: str, questions: Iterable[tuple[str, str]]) -> LocalTask:
    """Own questions with their answers as a task: the model's line must equal the answer but for case and punctuation."""
    rows = [{"question": question, "answer": answer} for question, answer in questions]

    def dataset(**_: Any) -> dict[str, Any]:
        import datasets

        return {"test": datasets.Dataset.from_list(rows)}

    config = {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 64, "do_sample": False},
        "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
    }
    return LocalTask(config, hashlib.sha256(json.dumps(rows).encode()).hexdigest())
