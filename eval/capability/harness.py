"""lm_eval on a loaded model: one row for each question of a task (docs/evaluation.md).

    python -m curricula.eval.capability.harness mmlu gsm8k     # fetches the tasks' data, for nodes without a network

lm_eval asks the model through `Resumed`, which stores every finished batch of requests in `<task>.responses.jsonl` until the
rows are written. Imports no torch: tasks are checked on login nodes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import logging
import math
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from curricula.curriculum.sources.hub import HubAway, is_hub_away
from curricula.durable import append_jsonl, read_jsonl
from curricula.errors import UserError, load_failure
from curricula.eval.benchmarks import Prompt
from curricula.eval.capability.settings import PUBLISHED, Capability
from curricula.eval.rows import CapabilityRow, read_rows, row_key, write_rows
from curricula.progress import Progress, silent
from curricula.settings import read_yaml
from curricula.terminal import one_line

if TYPE_CHECKING:
    from curricula.eval.models import LoadedModel

log = logging.getLogger(__name__)

HEADLINES = ("acc_norm", "acc", "exact_match")
"""Headline metrics of tasks that are not in `PUBLISHED`; the first that a task has counts."""
BATCHES_AT_ONCE = 16
"""Batches of requests that are stored together."""
# fmt: off
KEYS = frozenset((
    "task", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split",
    "fewshot_split", "description", "doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter",
    "fewshot_delimiter", "fewshot_config", "num_fewshot", "output_type", "generation_kwargs", "filter_list",
    "metric_list", "metadata",
))
# fmt: on
"""Keys that a task file may have."""
METRICS = ("acc", "acc_norm", "exact_match")
METRIC_KEYS = {"metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "ignore_numbers"}
BUILDERS = ("json", "csv", "parquet")


def capability_rows(
    loaded: LoadedModel,
    name: str,
    settings: Capability,
    path: Path,
    questions: Sequence[Prompt] | None = None,
    progress: Progress = silent,
) -> list[CapabilityRow]:
    """Measure the task `name` and write its rows to `path`, unless all are there. `questions` are those of an own set."""
    local = local_task(name, settings, questions)
    chat = settings.chat_template and not loaded.raw
    key = row_key(
        model=loaded.content_hash,
        precision=loaded.precision,
        kind=loaded.kind,
        task=name,
        definition=local.digest if local else "",
        limit=settings.limit,
        few_shot=settings.few_shot,
        chat_template=chat,
        batch=None if loaded.is_exact else settings.batch,
        lm_eval=require_lm_eval(),
    )
    stored = read_rows(path, CapabilityRow)
    if stored and all(row.key == key and row.questions in (0, len(stored)) for row in stored):
        progress(len(stored), len(stored))
        return stored
    kept = path.with_name(f"{path.stem}.responses.jsonl")
    asked = _resumed(loaded, settings.batch, kept, key, progress)
    results = _run(asked, name, local, settings, chat)
    rows = list(_rows(results, name, key, loaded, asked.cut))
    rows = [msgspec.structs.replace(row, questions=len(rows)) for row in rows]
    if cut := sum(row.cut for row in rows):
        log.warning(
            "capability task %s: %d of %d questions lost their beginning, as they exceed the model's context of %d tokens",
            *(name, cut, len(rows), loaded.positions),
        )
    write_rows(path, rows)
    kept.unlink(missing_ok=True)
    return rows


def _load_tasks(name: str, local: LocalTask | None) -> tuple[Any, Any]:
    """lm_eval's task manager, and the task `name` in a form that it accepts. Templates of tasks are rendered in a sandbox."""
    import jinja2.sandbox
    import lm_eval.utils

    plain = lm_eval.utils.env
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=plain.undefined, keep_trailing_newline=True)
    sandbox.filters.update(plain.filters)
    lm_eval.utils.env = sandbox
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return task_manager(name, local is not None), dict(local.config) if local else name


def _run(lm: Any, name: str, local: LocalTask | None, settings: Capability, chat: bool) -> dict[str, Any]:
    from lm_eval import evaluator

    manager, task = _load_tasks(name, local)
    # lm_eval would run other programs for seconds to describe git and the machine, which is not used here.
    evaluator.add_env_info = evaluator.get_git_commit_hash = lambda *_: None
    try:
        results = evaluator.simple_evaluate(
            model=lm,
            tasks=[task],
            task_manager=manager,
            num_fewshot=settings.few_shot,
            limit=settings.limit,
            apply_chat_template=chat,
            bootstrap_iters=0,
        )
    except UserError:
        raise
    except Exception as error:  # a task is a small program: it can fail in any way
        if "CUDA error" in str(error):  # of the GPU, so another start can succeed
            raise
        is_away = is_hub_away(error)
        reason = type(error).__name__ + ("" if is_away else f": {one_line(str(error), 200)}")  # the hub's can quote a header
        fetch = f", fetch its data on a machine with a network (python -m curricula.eval.capability.harness {name})"
        mend = f"correct the task{'' if local else fetch}, or lower capability.batch if memory ran out"
        kind = HubAway if is_away else load_failure(error)
        raise kind(f"capability task {name}: lm_eval cannot carry it out ({reason}); {mend}") from error
    assert results is not None  # only other ranks get none
    return results


def _rows(
    results: dict[str, Any], name: str, key: str, loaded: LoadedModel, cut: Container[tuple[str, int]]
) -> Iterable[CapabilityRow]:
    for task, samples in sorted(results["samples"].items()):
        metric, answer_filter = _headline(name, task, samples)
        chosen = [sample for sample in samples if sample["filter"] == answer_filter]
        values = [float(sample[metric]) for sample in chosen]
        score = results["results"][task].get(f"{metric},{answer_filter}")
        is_mean = score is not None and math.isclose(score, sum(values) / len(values), abs_tol=1e-6)
        if not is_mean or not all(0 <= value <= 1 for value in values):
            raise UserError(
                f"capability task {task}: {metric} is not a mean of per-question scores between 0 and 1; leave the task out"
            )
        for sample, value in sorted(zip(chosen, values), key=lambda pair: pair[0]["doc_id"]):
            yield CapabilityRow(
                key=key,
                **loaded.row_fields,
                precision=loaded.precision,
                benchmark=name,
                task=task,
                prompt_id=str(sample["doc_id"]),
                question=sample["doc_hash"][:16],
                metric=metric,
                value=value,
                shots=int(results["n-shot"].get(task, 0)),
                cut=(task, sample["doc_id"]) in cut,
            )


def _headline(name: str, task: str, samples: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The headline metric, and the filter of answers that goes with it."""
    if not samples:
        raise UserError(f"capability task {task}: has no questions; leave it out")
    filters, metrics = list(dict.fromkeys(sample["filter"] for sample in samples)), samples[0]["metrics"]
    published = PUBLISHED.get(name)
    preferred = (published.metric, *HEADLINES) if published else HEADLINES
    metric = next((metric for metric in preferred if metric in metrics), None)
    if metric is None:
        raise UserError(
            f"capability task {task}: has only the metrics {', '.join(metrics)}, none of which scores single questions"
        )
    return metric, published.filter if published and published.filter in filters else filters[0]


def _resumed(loaded: LoadedModel, batch: int, kept: Path, key: str, progress: Progress) -> Any:
    """The model in the form that lm_eval asks. Its replies are stored in the file `kept`."""
    if loaded.tokenizer("a")["input_ids"] != [*loaded.beginning, *loaded.encode("a")]:
        raise UserError(
            f"{loaded.name}: its tokenizer puts a mark after every text, and lm_eval would put it between question and "
            "answer; set add_eos_token to false in tokenizer_config.json"
        )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    class Resumed(HFLM):
        cut: set[tuple[str, int]]
        """Task and number of each question that is longer than the model's context, whose beginning lm_eval cuts off."""

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return [tuple(reply) for reply in self._kept(super().loglikelihood, "loglikelihood", requests)]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return self._kept(super().loglikelihood_rolling, "loglikelihood_rolling", requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return self._kept(super().generate_until, "generate_until", requests)

        def _kept(self, ask: Callable[..., list[Any]], method: str, requests: list[Any]) -> list[Any]:
            """The replies to `requests`; those in the file are read from there. The longest requests come first, so that a lack
            of memory shows at once."""
            known = {line["key"]: line["replies"] for line in read_jsonl(kept)}
            size = batch * BATCHES_AT_ONCE
            order = sorted(range(len(requests)), key=lambda place: -len(requests[place].args[0]))
            replies: list[Any] = [None] * len(requests)
            for start in range(0, len(order), size):
                places = order[start : start + size]
                asked = json.dumps([key, method, batch, [requests[place].args for place in places]], default=str)
                name = hashlib.sha256(asked.encode()).hexdigest()[:32]
                if name not in known:
                    known[name] = ask([requests[place] for place in places], disable_tqdm=True)
                    append_jsonl(kept, [{"key": name, "replies": known[name]}])
                for place, reply in zip(places, known[name], strict=True):
                    replies[place] = reply
                progress(min(start + size, len(order)), len(order))
            self.cut |= {(one.task_name, one.doc_id) for one in requests if self._is_cut(method, *one.args)}
            return replies

        def _is_cut(self, method: str, text: str, rest: Any = None) -> bool:
            if method == "generate_until":
                answer = normalize_gen_kwargs(rest, self.max_gen_toks)["max_gen_toks"]
                return len(self.tok_encode(text)) > self.max_length - answer
            # A rolling request is read in pieces.
            return bool(text and rest) and sum(map(len, self._encode_pair(text, rest))) > self.max_length + 1

    loaded.model.tie_weights = lambda *_, **__: None  # lm_eval would tie them again, which fails for packed layers
    asked = Resumed(
        pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=batch, max_length=loaded.positions
    )
    asked.cut = set()
    return asked


class LocalTask(NamedTuple):
    config: dict[str, Any]
    """The task as lm_eval accepts it."""
    digest: str
    """Hash of the task and its data."""


def read_task(path: Path) -> LocalTask:
    """The task in a file. Raises UserError for keys, metrics or data files that are not supported."""
    raw = read_yaml(path, "no such task file")
    if not isinstance(raw, dict) or raw.get("task") != path.stem:
        raise UserError(f"{path}: the task in it must be named as the file is; write task: {path.stem}")
    if unknown := sorted(map(str, raw.keys() - KEYS)):
        raise UserError(f"{path}: key {unknown[0]!r} is not supported; a task file can have {', '.join(sorted(KEYS))}")
    metrics = raw.get("metric_list")
    if not isinstance(metrics, list) or not metrics or not all(map(_is_mean, metrics)):
        raise UserError(
            f"{path}: metric_list is {metrics!r}; write a list such as [{{metric: acc}}] with metrics among "
            f"{', '.join(METRICS)}, all with aggregation mean"
        )
    if raw.get("dataset_path") not in BUILDERS:
        raise UserError(
            f"{path}: dataset_path is {raw.get('dataset_path')!r}; write the data files' format, one of {', '.join(BUILDERS)}"
        )
    files = _data_files(path, raw.get("dataset_kwargs"))
    digest = hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode())
    for file in itertools.chain.from_iterable(files.values()):
        digest.update(file.read_bytes())
    paths = {split: list(map(str, of_split)) for split, of_split in files.items()}
    return LocalTask({**raw, "dataset_kwargs": {"data_files": paths}}, digest.hexdigest())


def _is_mean(metric: Any) -> bool:
    is_known = isinstance(metric, dict) and metric.get("metric") in METRICS and metric.keys() <= METRIC_KEYS
    return is_known and metric.get("aggregation", "mean") == "mean"


def _data_files(path: Path, given: Any) -> dict[str, list[Path]]:
    """The data files of each split. Raises UserError unless all are files within the folder of the task."""
    named = given.get("data_files") if isinstance(given, dict) and given.keys() == {"data_files"} else None
    if not isinstance(named, dict) or not named:
        raise UserError(f"{path}: dataset_kwargs is {given!r}; write data_files with a file for each split, and nothing else")
    files: dict[str, list[Path]] = {}
    for split, names in named.items():
        for name in names if isinstance(names, list) else [names]:
            file = (path.parent / str(name)).resolve()
            if not file.is_relative_to(path.parent.resolve()) or not file.is_file():
                raise UserError(f"{path}: data_files names {name!r}; put a file of this name next to the task file")
            files.setdefault(str(split), []).append(file)
    return files


def local_task(name: str, settings: Capability, questions: Sequence[Prompt] | None) -> LocalTask | None:
    """The task of `questions` or of a task file; None for a task of lm_eval's.

    Raises UserError, before a model is loaded, if lm_eval is missing, the task is unknown or its file is damaged.
    """
    require_lm_eval()
    if questions is not None:
        return question_task(name, [(one.text, one.target) for one in questions])
    if file := settings.local_file(name):
        return read_task(file)
    if name not in PUBLISHED and name not in task_manager(name, is_local=False).all_tasks:
        where = f"no {name}.yaml is in {settings.folder}" if settings.folder else "capability.folder names no folder"
        raise UserError(
            f"capability task {name!r} is not one of lm_eval's, and {where}; `lm_eval ls tasks` lists lm_eval's tasks"
        )
    return None


def task_manager(name: str, is_local: bool) -> Any:
    """lm_eval's task manager, which knows `name` if lm_eval has it, and as few other tasks as possible."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    if is_local or name in PUBLISHED:
        folders = [] if is_local else [root / PUBLISHED[name].folder]
        return lm_eval.tasks.TaskManager(include_defaults=False, include_path=folders)
    return lm_eval.tasks.TaskManager()


def require_lm_eval() -> str:
    """The version of lm_eval. Raises UserError if it is not installed."""
    try:
        return importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("capability needs lm_eval: `pip install safety-curricula[lm-eval]`") from None


def question_task(name: str, questions: Iterable[tuple[str, str]]) -> LocalTask:
    """A task of own questions with their answers. The model's line must equal the answer except for case and punctuation."""
    rows = [{"question": question, "answer": answer} for question, answer in questions]

    def dataset(**_: Any) -> dict[str, Any]:
        import datasets

        return {"test": datasets.Dataset.from_list(rows)}

    config = {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",  # the column's name: from a template, lm_eval would read "[1, 2]" as two answers
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 64, "do_sample": False},
        "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True}],
    }
    return LocalTask(config, hashlib.sha256(json.dumps(rows).encode()).hexdigest())


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        manager, named = _load_tasks(wanted, None)
        manager.load([named])
