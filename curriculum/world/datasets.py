"""Writes the fictional world's datasets in the layouts of the public ones (see `curriculum/sources/declared.py`).

    curricula data world /tmp/world

No two documents in the files of a world are alike, so held-out text is new. A document depends on the seed, its source and its
number, and on other documents only if it would repeat one. So a larger source begins with the documents of a smaller one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from curricula.curriculum.world.arithmetic import Problem, problem
from curricula.curriculum.world.benchmarks import alpaca, harmful_benchmarks
from curricula.curriculum.world.chats import ultrachat, wildguard, wildjailbreak
from curricula.curriculum.world.fiction import World, WorldConfig
from curricula.curriculum.world.grammar import Draw
from curricula.curriculum.world.harm import SCORES, moral, raw, refusal_dialogue, rephrased
from curricula.curriculum.world.web import story, web_page
from curricula.durable import write_text
from curricula.errors import UsageError

Row = dict[str, Any]
_ATTEMPTS = 50
"""Draws of one text before the world counts as exhausted."""


class Press:
    """Makes texts of a world, no two alike."""

    def __init__(self, world: World):
        self.world, self.seed = world, world.config.seed
        self._seen: set[str] = set()

    def print(self, make: Callable[[World, Draw], Any], text: Callable[[Any], str], *key: object) -> Any:
        """What `make` draws by `key`, repeated until its `text` is new. Raises UsageError after too many attempts."""
        for attempt in range(_ATTEMPTS):
            made = make(self.world, Draw(self.seed, *key, attempt))
            if text(made) not in self._seen:
                self._seen.add(text(made))
                return made
        raise UsageError(
            f"the fictional world has no new text left for {' '.join(map(str, key))}; lower the counts in its config, "
            "or raise the numbers of items and substances"
        )

    def documents(self, source: str, count: int, make: Callable[[World, Draw], str]) -> list[Row]:
        return [{"id": f"{source}/{number}", "text": self.print(make, str, source, number)} for number in range(count)]


def write_world(root: Path, config: WorldConfig) -> None:
    """Write every dataset of the world under `root`, each file atomically, and world.json last."""
    world = World.generate(config)
    press = Press(world)
    # Test texts come first, so that they stay the same when the counts of training texts change.
    _write_benchmarks(root, world)
    _write_jsonl(root / "gsm8k/test.jsonl", _gsm8k(press, "test", config.gsm8k_test))
    for split in ("train", "test"):
        _write_jsonl(root / f"probes/{split}.jsonl", _probes(press, split))
    for folder, train, count, make in (
        ("fineweb_annotated", "score_0", config.web_documents, web_page),
        ("cosmopedia", "train", config.stories, story),
        ("finemath", "train", config.math_problems, None),
    ):
        for file, size in (("validation", config.validation_documents), (train, count)):
            source = f"{folder}/{file}"
            rows = press.documents(source, size, make) if make else _math(press, source, size)
            if folder == "fineweb_annotated":
                rows = [{**row, "metadata": {"score": 0}} for row in rows]
            _write_jsonl(root / f"{source}.jsonl", rows)
    _write_unsafe(root, press)
    _write_tuning(root, press)
    world.save(root)


def _gsm8k(press: Press, split: str, count: int) -> list[Row]:
    return [{"question": p.question, "answer": p.gsm8k} for p in _problems(press, count, "gsm8k", split)]


def _math(press: Press, source: str, count: int) -> list[Row]:
    problems = _problems(press, count, source)
    return [{"id": f"{source}/{number}", "text": p.prose} for number, p in enumerate(problems)]


def _problems(press: Press, count: int, *key: str) -> Iterator[Problem]:
    return (press.print(problem, lambda p: p.question, *key, number) for number in range(count))


def _write_unsafe(root: Path, press: Press) -> None:
    """Write raw unsafe text of each score, and the interventions made from it with the ids of their sources."""
    hazards = press.world.pretraining_hazards
    documents: dict[str, list[Row]] = {"safeweb": [], "refuseweb": [], "moral_education": []}
    for score in SCORES:
        interventions = [("safeweb", rephrased)] if score < 4 else [("refuseweb", refusal_dialogue), ("moral_education", moral)]
        rows: list[Row] = []
        for number in range(press.world.config.unsafe_documents):
            name = f"fineweb_annotated/score_{score}/{number}"
            item = hazards[Draw(press.seed, name).below(len(hazards))]
            text = press.print(partial(raw, item=item, score=score), str, name)
            rows.append({"id": name, "text": text, "metadata": {"score": score}})
            for folder, write in interventions:
                text = press.print(partial(write, item=item, score=score), str, folder, name, 0)
                source = {"source_id": name, "score": score}
                documents[folder].append({"id": f"{folder}/{score}/{number}.0", "text": text, "metadata": source})
        _write_jsonl(root / f"fineweb_annotated/score_{score}.jsonl", rows)
    for folder, rows in documents.items():
        _write_jsonl(root / f"{folder}/train.jsonl", rows)


def _about_any_hazard(world: World, draw: Draw, score: int) -> str:
    return raw(world, draw, draw.pick(world.pretraining_hazards), score)


def _probes(press: Press, split: str) -> list[Row]:
    """As many web pages (score 0) as raw unsafe texts. No pretraining file holds any of them."""
    count = press.world.config.probes_per_score
    rows = []
    for score in (0, *SCORES):
        make = partial(_about_any_hazard, score=score) if score else web_page
        for number in range(count if score else count * len(SCORES)):
            name = f"probes/{split}/{score}/{number}"
            rows.append({"id": name, "text": press.print(make, str, name), "score": score})
    return rows


def _write_tuning(root: Path, press: Press) -> None:
    config = press.world.config
    _write_jsonl(root / "gsm8k/train.jsonl", _gsm8k(press, "train", config.gsm8k_train))
    for file, make, count in (
        ("ultrachat_200k/train_sft", ultrachat, config.chats),
        ("wildguardmix/train", wildguard, config.wildguard_rows),
        ("wildjailbreak/train", wildjailbreak, config.wildjailbreak_rows),
    ):
        _write_jsonl(root / f"{file}.jsonl", [press.print(make, json.dumps, file, n) for n in range(count)])


def _write_benchmarks(root: Path, world: World) -> None:
    tables = harmful_benchmarks(world)
    _write_csv(root / "advbench/harmful_behaviors.csv", tables["advbench"])
    _write_csv(root / "harmbench/harmbench_behaviors_text_test.csv", tables["harmbench"])
    _write_csv(root / "jailbreakbench/harmful-behaviors.csv", tables["jailbreakbench"])
    _write_list(root / "tdc2023/test_behaviors.json", tables["tdc2023"])
    _write_jsonl(root / "jb_completions/train.jsonl", tables["jb_completions"])
    _write_list(root / "stanford_alpaca/alpaca_instructions_noinput.json", alpaca(world))


def _write_jsonl(path: Path, rows: list[Row]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_list(path: Path, values: list[Any]) -> None:
    write_text(path, json.dumps(values, indent=1) + "\n")


def _write_csv(path: Path, rows: list[Row]) -> None:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, table.getvalue())
