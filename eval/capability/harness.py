"""lm_eval on a loaded model: one row for each question of a task.

    python -m curricula.eval.capability.harness mmlu gsm8k     # fetches tasks' data, where nodes have no network

lm_eval asks the model in `Resumed`, which keeps every finished batch of requests in `<task>.responses.jsonl` until the rows
are written. Batches are fixed by the requests alone, so an evaluation that was killed ends with the rows of one that was not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from curricula.durable import append_jsonl, read_jsonl
from curricula.errors import UsageError, UserError
from curricula.eval.benchmarks import Prompt
from curricula.eval.capability.local_tasks import (
    LocalTask,
    check_task,
    question_task,
    read_task,
    require_lm_eval,
    task_manager,
)
from curricula.eval.capability.settings import PUBLISHED, Capability
from curricula.eval.decoding.registry import EXACT
from curricula.eval.models import LoadedModel
from curricula.eval.rows import CapabilityRow, read_rows, row_key, write_rows
from curricula.progress import Progress, silent

HEADLINES = ("acc_norm", "acc", "exact_match")
"""The metric of a task that `PUBLISHED` does not have: the first of these."""
BATCHES_AT_ONCE = 16
"""Batches of requests that are kept together."""


def capability_rows(
    loaded: LoadedModel,
    name: str,
    settings: Capability,
    path: Path,
    questions: Sequence[Prompt] | None = None,
    progress: Progress = silent,
) -> list[CapabilityRow]:
    """Measure the task `name` into `path`, unless it is there. `questions` are those of an own set.

    Raises UserError for a task that is unknown, damaged or not to be had.
    """
    check_task(name, settings, {name} if questions is not None else ())
    if questions is not None:
        local: LocalTask | None = question_task(name, [(one.text, one.target) for one in questions])
    else:
        local = read_task(file) if (file := settings.local_file(name)) else None
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
        batch=None if loaded.precision in EXACT else settings.batch,
        lm_eval=require_lm_eval(),
    )
    found = read_rows(path, CapabilityRow)
    if found and all(row.key == key for row in found):
        progress(len(found), len(found))
        return found
    kept = path.with_name(f"{path.stem}.responses.jsonl")
    results = _run(_resumed(loaded, settings.batch, kept, key, progress), name, local, settings, chat)
    rows = list(_rows(results, name, key, loaded))
    write_rows(path, rows)
    kept.unlink(missing_ok=True)
    return rows


def _load_tasks(name: str, local: LocalTask | None) -> tuple[Any, Any]:
    """lm_eval's manager of tasks, and what it takes for the task `name`."""
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
    # What it would record of git and the machine takes seconds of other programs, and is not read here.
    evaluator.add_env_info = evaluator.get_git_commit_hash = lambda *_: None
    try:
        found = evaluator.simple_evaluate(
            model=lm,
            tasks=[task],
            task_manager=manager,
            num_fewshot=settings.few_shot,
            limit=settings.limit,
            apply_chat_template=chat,
            bootstrap_iters=0,
        )
    except (UserError, UsageError):
        raise
    except Exception as error:  # a task is a small program: it can fail in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        fetch = f", fetch its data where there is a network (python -m curricula.eval.capability.harness {name})"
        mend = f"correct the task{'' if local else fetch}, or lower capability.batch where memory ran out"
        raise UserError(f"capability task {name}: lm_eval cannot carry it out ({reason}); {mend}") from error
    assert found is not None  # only other ranks get none
    return found


def _rows(results: dict[str, Any], name: str, key: str, loaded: LoadedModel) -> Iterable[CapabilityRow]:
    for task, samples in sorted(results["samples"].items()):
        metric, reading = _headline(name, task, samples)
        chosen = [sample for sample in samples if sample["filter"] == reading]
        values = [float(sample[metric]) for sample in chosen]
        whole = results["results"][task].get(f"{metric},{reading}")
        is_mean = whole is not None and math.isclose(whole, sum(values) / len(values), abs_tol=1e-6)
        if not is_mean or not all(0 <= value <= 1 for value in values):
            raise UserError(f"capability task {task}: {metric} is no mean over questions of 0 to 1; leave the task out")
        for sample, value in sorted(zip(chosen, values), key=lambda pair: pair[0]["doc_id"]):
            yield CapabilityRow(
                key=key,
                model=loaded.content_hash,
                model_kind=loaded.kind,
                step=loaded.step,
                precision=loaded.precision,
                benchmark=name,
                task=task,
                prompt_id=str(sample["doc_id"]),
                question=sample["doc_hash"][:16],
                metric=metric,
                value=value,
                shots=int(results["n-shot"].get(task, 0)),
            )


def _headline(name: str, task: str, samples: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """The metric that counts, and the reading of answers that goes with it."""
    if not samples:
        raise UserError(f"capability task {task}: has no questions; leave it out")
    readings, metrics = list(dict.fromkeys(sample["filter"] for sample in samples)), samples[0]["metrics"]
    wanted = PUBLISHED.get(name)
    metric = next((one for one in (*([wanted.metric] if wanted else []), *HEADLINES) if one in metrics), None)
    if metric is None:
        raise UserError(
            f"capability task {task}: has the metrics {', '.join(metrics)}, of which none is a share of questions"
        )
    return metric, wanted.filter if wanted and wanted.filter in readings else readings[0]


def _resumed(loaded: LoadedModel, batch: int, kept: Path, key: str, progress: Progress) -> Any:
    """The model as lm_eval asks it, with its replies kept in `kept`."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.models.huggingface import HFLM

    class Resumed(HFLM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return [tuple(reply) for reply in self._kept(super().loglikelihood, "loglikelihood", requests)]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return self._kept(super().loglikelihood_rolling, "loglikelihood_rolling", requests)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return self._kept(super().generate_until, "generate_until", requests)

        def _kept(self, ask: Callable[..., list[Any]], method: str, requests: list[Any]) -> list[Any]:
            """The replies; those in the file are read from there. The longest requests come first, and fail first."""
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
            return replies

    loaded.model.tie_weights = lambda *_, **__: None  # lm_eval would tie them anew, which packed layers do not bear
    return Resumed(pretrained=loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=batch)


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        manager, named = _load_tasks(wanted, None)
        manager.load([named])
