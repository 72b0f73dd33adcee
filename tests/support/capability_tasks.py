"""Two small capability tasks in a folder, as lm_eval has them: one of choices, one of words."""

from __future__ import annotations

import json
from pathlib import Path

CHOICES = """task: choices
dataset_path: json
dataset_kwargs: { data_files: { test: choices.jsonl } }
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{options}}"
doc_to_target: right
metric_list: [{ metric: acc }, { metric: acc_norm }]
"""
WORDS = """task: words
dataset_path: json
dataset_kwargs: { data_files: { test: [words.jsonl] } }
test_split: test
output_type: generate_until
generation_kwargs: { until: ["\\n"], max_gen_toks: 4, do_sample: false }
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
metric_list: [{ metric: exact_match, aggregation: mean, higher_is_better: true }]
"""


def write_tasks(folder: Path, questions: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "choices.yaml").write_text(CHOICES)
    (folder / "words.yaml").write_text(WORDS)
    options = [["bread and letters", "the sea"], ["a clock", "an old tower in a small town"], ["three tips", "one"]]
    rows = [{"question": f"Which is it, {n}?", "options": options[n % 3], "right": n % 2} for n in range(questions)]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"question": f"Say the word {n}:", "answer": str(n)} for n in range(questions // 2)]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
