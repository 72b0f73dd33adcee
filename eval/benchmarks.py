"""The benchmarks by name: where each lies locally and on the hub, under which licence, and how its rows become prompts.

A root folder (a fictional world, or the folder that $CURRICULA_DATA names) is read if it is given, else the Hugging
Face hub. Files are the publishers' own; nothing here knows models or judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from curriculum.errors import UsageError, UserError
from curriculum.randomness import key_seed
from curriculum.tables import Table, table_exists


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a model."""

    id: str  # unique within the benchmark
    benchmark: str
    text: str  # what the model is given, before any chat template
    behavior: str  # what the judge is asked about
    context: str = ""  # HarmBench: the text that a contextual behaviour refers to (also within `text`)
    category: str = ""
    copyright: bool = False  # HarmBench: asks for copyrighted text, which no classifier can judge


@dataclass(frozen=True)
class Benchmark:
    """Where one benchmark lies and how to read a row: `columns` names, for each part, the columns it may stand in."""

    file: str  # relative to the root folder
    hub: str | None  # None: not on the hub
    licence: str
    columns: dict[str, tuple[str, ...]]
    make: Callable[[dict[str, str]], dict[str, Any]] = lambda parts: {}  # parts of a row -> fields of its prompt
    hub_configs: tuple[str | None, ...] = (None,)
    hub_split: str = "train"
    hub_revision: str | None = None
    keep: Callable[[dict[str, Any]], bool] = lambda row: True
    optional: frozenset[str] = frozenset({"id", "category", "context", "tags"})

    def stem(self, root: Path) -> Path:
        """The table of this benchmark in a data folder, in whatever format it is there."""
        return (root / self.file).with_suffix("")


def plain(parts: dict[str, str]) -> dict[str, Any]:
    return {"text": parts["text"].strip(), "behavior": parts["text"].strip(), "category": parts["category"]}


def harmbench(parts: dict[str, str]) -> dict[str, Any]:
    # The published pipeline puts the context first and a rule between it and the request.
    text = f"{parts['context']}\n\n---\n\n{parts['text']}" if parts["context"] else parts["text"]
    return {
        **plain(parts),
        "text": text.strip(),
        "context": parts["context"],
        "copyright": "hash_check" in parts["tags"],
    }


def completion(parts: dict[str, str]) -> dict[str, Any]:
    # A trailing space would be a token of its own and push the first word off its usual tokenisation.
    return {"text": parts["text"].rstrip(), "behavior": parts["behavior"], "category": parts["category"]}


def advbench_completion(parts: dict[str, str]) -> dict[str, Any]:
    beginning = parts["text"].removeprefix("Sure, ").strip()
    return {
        "text": beginning[:1].upper() + beginning[1:],
        "behavior": parts["behavior"],
        "category": "advbench-targets",
    }


BENCHMARKS: dict[str, Benchmark] = {
    "harmbench": Benchmark(
        # The 320 test behaviours; the hub has all 400, validation included, and no test marks.
        "harmbench/harmbench_behaviors_text_test.csv",
        "walledai/HarmBench",
        "MIT",
        {
            "text": ("Behavior", "prompt"),
            "id": ("BehaviorID",),
            "category": ("SemanticCategory", "category"),
            "context": ("ContextString", "context"),
            "tags": ("Tags", "tags"),
        },
        harmbench,
        hub_configs=("standard", "contextual", "copyright"),
    ),
    "advbench": Benchmark(
        "advbench/harmful_behaviors.csv",
        "walledai/AdvBench",
        "MIT",
        {"text": ("goal", "prompt")},
        plain,
        hub_revision="9d4730540082fa4017450b65ca1c0e1d8d30446e",
    ),
    "jailbreakbench": Benchmark(
        "jailbreakbench/harmful-behaviors.csv",
        "JailbreakBench/JBB-Behaviors",
        "MIT",
        {"text": ("Goal",), "id": ("Index", ""), "category": ("Category",)},
        plain,
        hub_configs=("behaviors",),
        hub_split="harmful",
        hub_revision="886acc352a31533ffbcf4ef22c744658688086fc",
    ),
    "tdc": Benchmark(
        "tdc2023/test_behaviors.json", "walledai/TDC23-RedTeaming", "MIT", {"text": ("text", "prompt")}, plain
    ),
    "jb_completions": Benchmark(
        "jb_completions/train.jsonl",
        "locuslab/jb-completions",
        "not stated",
        {
            "text": ("completion_behavior",),
            "behavior": ("original_behavior",),
            "category": ("source_dataset",),
        },
        completion,
    ),
    "advbench_completions": Benchmark(
        # Stand-in for jb_completions without the hub: AdvBench's affirmative targets are harmful beginnings once
        # "Sure, " is gone ("Here is a script that ...").
        "advbench/harmful_behaviors.csv",
        "walledai/AdvBench",
        "MIT",
        {"text": ("target",), "behavior": ("goal", "prompt")},
        advbench_completion,
        hub_revision="9d4730540082fa4017450b65ca1c0e1d8d30446e",
    ),
    "alpaca": Benchmark(
        "stanford_alpaca/alpaca_instructions_noinput.json",
        "tatsu-lab/alpaca",
        "CC-BY-NC-4.0",
        {"text": ("instruction",), "category": ("category",)},
        plain,
        hub_revision="dce01c9b08f87459cf36a430d809084718273017",
        keep=lambda row: not row.get("input"),
    ),
}


def load_prompts(
    name: str, root: Path | None, *, limit: int | None = None, with_copyright: bool = False
) -> list[Prompt]:
    """Prompts of a benchmark in file order; raises UserError naming file and column when they cannot be had.

    `limit` takes a sample that depends on the prompts' ids alone: the same for every model, and part of any larger one.
    `jb_completions` falls back to `advbench_completions` under a root folder that lacks its file.
    """
    if name == "jb_completions" and root is not None and not table_exists(BENCHMARKS[name].stem(root)):
        name = "advbench_completions"
    entry = find(name)
    where = f"{entry.stem(root)}" if root is not None else f"{entry.hub} on the Hugging Face hub"
    rows: Iterable[Any] = Table.open(entry.stem(root)).rows() if root is not None else hub_rows(name, entry)
    prompts: list[Prompt] = []
    for number, row in enumerate(rows):
        if not entry.keep(row):
            continue
        parts = {
            part: column(row, part, entry, f"{where}: row {number + 1}") for part in {*entry.columns, *entry.optional}
        }
        prompt = Prompt(id=parts["id"] or str(number), benchmark=name, **entry.make(parts))
        if prompt.text and (with_copyright or not prompt.copyright):
            prompts.append(prompt)
    if not prompts:
        raise UserError(f"{where}: holds no prompt for benchmark {name}; fetch it again")
    repeated = len(prompts) - len({prompt.id for prompt in prompts})
    if repeated:
        raise UserError(f"{where}: {repeated} prompts repeat the id of another; fetch it again")
    if limit is not None and limit < len(prompts):
        by_lot = sorted(range(len(prompts)), key=lambda i: key_seed("prompts", name, prompts[i].id))
        prompts = [prompts[i] for i in sorted(by_lot[:limit])]
    return prompts


def find(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise UsageError(f"benchmark {name!r} is not known; choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def column(row: dict[str, Any], part: str, entry: Benchmark, where: str) -> str:
    """The value of the first column of `row` that may hold `part`; "" for an absent optional part."""
    names = entry.columns.get(part, ())
    for candidate in names:
        if row.get(candidate) is not None:
            return str(row[candidate])
    if part in entry.optional:
        return ""
    raise UserError(
        f"{where} has no column {' or '.join(map(repr, names))}, only {sorted(map(str, row))}; fetch it again"
    )


def hub_rows(name: str, entry: Benchmark) -> list[dict[str, Any]]:
    import datasets

    rows: list[dict[str, Any]] = []
    for config in entry.hub_configs:
        try:
            part = datasets.load_dataset(entry.hub, config, split=entry.hub_split, revision=entry.hub_revision)
        except (OSError, ValueError, ConnectionError) as error:
            raise UserError(
                f"benchmark {name}: {entry.hub} cannot be read from the Hugging Face hub ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:160]}); put {entry.file} into a folder and name it in CURRICULA_DATA"
            ) from error
        # A config of copyright rows says in its name what the file says in a column.
        rows += [{**row, **({"tags": "hash_check"} if config == "copyright" else {})} for row in part]
    return rows
