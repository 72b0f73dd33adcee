"""All answers of a study as the page reads them: columns of numbers with dictionaries, compressed, a block at a time.

A block is JSON, gzipped and written in base64, so that nothing in an answer can be taken for markup. Blocks are read one after
another: prompts and texts are named where they first occur, and later blocks refer to them.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from curricula.eval.analysis.study_rows import StudyRows
from curricula.eval.rows import JudgedRow

BLOCK = 4000


class Names:
    """Numbers for values, in the order of their first use."""

    def __init__(self, *values: Any) -> None:
        self.numbers = {value: number for number, value in enumerate(values)}

    def __call__(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))

    def since(self, count: int) -> list[Any]:
        return list(islice(self.numbers, count, None))


def packed_answers(study: StudyRows) -> tuple[list[str], dict[str, Any]]:
    """The blocks, and what the numbers in their columns stand for."""
    arm, stage, decoder, finish = Names(*(one.key for one in study.arms)), Names(), Names(), Names()
    own, verdict, prompt, text = Names(""), Names("", "unparsed"), Names(), Names()
    rows, blocks, count = _rows(study), [], 0
    while lot := list(islice(rows, BLOCK)):
        count += len(lot)
        prompts, texts = len(prompt.numbers), len(text.numbers)
        numbers = [
            {
                "arm": arm(key),
                "stage": stage(of_stage),
                "decoder": decoder(row.decoder),
                "prompt": prompt((row.benchmark, row.prompt_id, row.behavior or row.prompt, row.category)),
                "text": text(row.prompt),
                "sample": row.sample,
                "finish": finish(row.finish),
                "tokens": row.tokens,
                "own": own(f"{row.judge} {row.judge_version}".strip()),
                "verdict": verdict(row.verdict if row.judge else "" if not row.changed else "unparsed"),
                "others": [verdict(other.verdict if other and other.judge else "") for other in judged],
            }
            for key, of_stage, row, judged in lot
        ]
        others = [one.pop("others") for one in numbers]
        block = {
            "prompts": prompt.since(prompts),
            "texts": text.since(texts),
            "columns": {name: [one[name] for one in numbers] for name in numbers[0]},
            "others": [list(column) for column in zip(*others)],
            "answers": [row.response for _, _, row, _ in lot],
        }
        packed = gzip.compress(json.dumps(block, ensure_ascii=False, separators=(",", ":")).encode(), 6, mtime=0)
        blocks.append(base64.b64encode(packed).decode())
    return blocks, {
        "count": count,
        "arms": [{"key": one.key, "name": one.name, "seed": one.seed} for one in study.arms],
        **{name: list(of.numbers) for name, of in (("stage", stage), ("decoder", decoder), ("finish", finish))},
        "verdict": list(verdict.numbers),
        "own": list(own.numbers),
        "judges": list(study.others),
    }


def _rows(study: StudyRows) -> Iterator[tuple[str, str, JudgedRow, list[JudgedRow | None]]]:
    """The key of its arm, the stage, the answer, and the answer as each other judge has judged it."""
    for (key, stage, task), rows in study.generations.items():
        others = [judged.get((key, stage, task)) for judged in study.others.values()]
        for number, row in enumerate(rows):
            yield key, stage, row, [of[number] if of else None for of in others]
