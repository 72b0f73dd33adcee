"""All answers of a study as the page reads them: columns of numbers with dictionaries, compressed, a block at a time.

A block is JSON, gzipped and written in base64, so that nothing in an answer can be taken for markup. Blocks are read one after
another: prompts and texts are named where they first occur, and later blocks refer to them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from curricula.eval.analysis.study_rows import ArmInfo, StudyRows
from curricula.eval.rows import JudgedRow

BLOCK = 4000
COLUMNS = ("arm", "stage", "decoder", "prompt", "text", "sample", "finish", "tokens")


class Names:
    """Numbers for values, in the order of their first use."""

    def __init__(self, *values: Any) -> None:
        self.numbers = {value: number for number, value in enumerate(values)}

    def __call__(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def since(self, count: int) -> list[Any]:
        return list(islice(self.numbers, count, None))


class Answers:
    """The answers of a study; `blocks` must be used up before `names` is complete."""

    def __init__(self, study: StudyRows) -> None:
        self._study = study
        self._arms = {arm.key: number for number, arm in enumerate(study.arms)}
        self._judges = list(study.others)
        self._stage, self._decoder, self._finish, self._verdict = Names(), Names(), Names(), Names("", "unparsed")
        self._own_judges = Names("")
        self._prompts, self._texts = Names(), Names()
        self.count = 0

    def blocks(self) -> Iterator[str]:
        rows = self._rows()
        while lot := list(islice(rows, BLOCK)):
            self.count += len(lot)
            yield self._block(lot)

    def names(self) -> dict[str, Any]:
        """What the numbers in the columns stand for."""
        return {
            "count": self.count,
            "arms": [{"key": arm.key, "name": arm.name, "seed": arm.seed} for arm in self._study.arms],
            "stage": list(self._stage.numbers),
            "decoder": list(self._decoder.numbers),
            "finish": list(self._finish.numbers),
            "verdict": list(self._verdict.numbers),
            "own": list(self._own_judges.numbers),
            "judges": self._judges,
        }

    def _rows(self) -> Iterator[tuple[ArmInfo, str, JudgedRow, list[JudgedRow | None]]]:
        arms = {arm.key: arm for arm in self._study.arms}
        for (key, stage, task), rows in self._study.generations.items():
            others = [self._study.others[judge].get((key, stage, task)) for judge in self._judges]
            for number, row in enumerate(rows):
                yield arms[key], stage, row, [of[number] if of else None for of in others]

    def _block(self, lot: Sequence[tuple[ArmInfo, str, JudgedRow, list[JudgedRow | None]]]) -> str:
        prompts, texts = len(self._prompts.numbers), len(self._texts.numbers)
        columns: dict[str, list[int]] = {name: [] for name in (*COLUMNS, "own", "verdict")}
        given: list[list[int]] = [[] for _ in self._judges]
        for arm, stage, row, others in lot:
            prompt = self._prompts((row.benchmark, row.prompt_id, row.behavior or row.prompt, row.category))
            numbers = (self._arms[arm.key], self._stage(stage), self._decoder(row.decoder), prompt)
            rest = (self._texts(row.prompt), row.sample, self._finish(row.finish), row.tokens)
            for name, value in zip(COLUMNS, (*numbers, *rest), strict=True):
                columns[name].append(value)
            columns["own"].append(self._own_judges(f"{row.judge} {row.judge_version}".strip()))
            columns["verdict"].append(self._verdict(row.verdict if row.judge else "" if not row.changed else "unparsed"))
            for column, other in zip(given, others, strict=True):
                column.append(self._verdict(other.verdict if other and other.judge else ""))
        block = {
            "prompts": self._prompts.since(prompts),
            "texts": self._texts.since(texts),
            "columns": columns,
            "others": given,
            "answers": [row.response for _, _, row, _ in lot],
        }
        packed = gzip.compress(json.dumps(block, ensure_ascii=False, separators=(",", ":")).encode(), 6, mtime=0)
        return base64.b64encode(packed).decode()
