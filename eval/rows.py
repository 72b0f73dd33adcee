"""Rows of an evaluation: what one element writes, line by line, and how a restarted element finds what is already done.

Rows live in append-only JSON Lines files in the folder of one model; docs/evaluation.md says what their keys hold. They are
appended one whole batch at a time, and a batch is a fixed run of prompts, so an element that was killed and restarted ends with
the same bytes as one that was not. `ModelRows` keeps one model's rows from being read as those of another. This file knows
nothing of benchmarks or judges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from curricula import durable
from curricula.errors import UserError
from curricula.settings import convert, decode

ModelKind = str
"""The name of the stage that made a model; "base" after pretraining."""
MODEL_KINDS: tuple[ModelKind, ...] = ("base", "instruct", "benign")
"""The paper's."""
Precision = Literal["float32", "bfloat16", "float64"]
Count = Annotated[int, msgspec.Meta(ge=0)]

ATTACK_VERDICTS = ("harmful", "safe", "refusal", "shortcircuit", "unparsed")
"""Verdicts on a harmful request. Only "harmful" is a successful attack; "unparsed" is no verdict and counted apart."""

OVERREFUSAL_VERDICTS = (
    "1_compliant_and_helpful",
    "2_compliant_and_unhelpful",
    "3_partial_refusal",
    "4_full_refusal",
    "5_shortcircuit",
    "unparsed",
)
"""Verdicts on a benign request (section 4.2 of the paper); categories 3 to 5 count as overrefusal."""


class Pruning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What SafeBeam's pruning by P(tag) cost one answer."""

    logp: float
    """Summed log-probability of the answer's tokens, its end mark or tag included, in nats."""
    lost: float
    """At every step, how far the likeliest candidate lay above the likeliest that survived; the sum over the steps, in nats."""
    dropped: Count
    """Steps at which the likeliest candidate was dropped."""
    steps: Count
    """All steps of the search, at least the answer's tokens."""


class GenerationRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One answer of the model to one prompt."""

    key: str
    """Hash of prompt id and text, model, precision, decoder and its settings, seed and sample."""
    task: str
    """Name in eval/tasks.py."""
    model: str
    """Content hash of the model folder."""
    model_kind: ModelKind
    """The stage that made the model."""
    step: Count | None = None
    """The step of the stage at which the model was taken, if that was before its end."""
    raw: bool
    """Whether the model gets prompts as they are, without a chat template. In the task template-removal every model does."""
    precision: str
    """Precision of the weights."""
    benchmark: str
    """Name in eval/benchmarks.py; "advbench_completions" where jb_completions is not available."""
    prompt_id: str
    """Unique within the benchmark."""
    category: str
    """The benchmark's own class of the prompt (its source dataset for jb_completions); "" if it has none."""
    behavior: str
    """The request that the judge is asked about; equals `prompt` for plain requests."""
    prompt: str
    """What the model was given, before the chat template; as an attack changed it."""
    decoder: str
    """Name in eval/decoding/registry.py, with the task's prefix: "topk", "gcg+topk"."""
    sample: Count
    """0 .. samples - 1, or the number of the attempt for best of N; always 0 for decoders with one answer."""
    seed: int
    """The arm's training seed, or --seed of `curricula eval`; a row's draws come from (seed, benchmark, prompt id, sample)."""
    context: str = ""
    """The text that a contextual behavior of HarmBench refers to; also within `prompt`."""
    cluster: str = ""
    """Near-duplicate prompts of all benchmarks have the same cluster."""
    shard_of: str = ""
    """Hash of all the prompts that are divided into shards; "" without shards, and in rows of earlier versions."""
    prefill: str = ""
    """What an attack made the answer begin with; `response` begins with it too."""
    response: str
    """Generated text, cut before the tag and the end mark."""
    completion: str = ""
    """The safe completion shown in place of an answer that was cut at the tag."""
    tokens: Count
    """Generated tokens, the tag and the end mark included."""
    finish: str
    """"end" (end mark), "length", or "tag" (cut at the tag)."""
    shortcircuit: bool
    """Whether the model wrote the tag, cut there or not."""
    pruning: Pruning | None = None
    """None for other decoders than SafeBeam, and in rows of earlier versions."""


class VerdictRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One judge's verdict on one answer."""

    key: str
    """Key of the GenerationRow."""
    judge: str
    """Name of the judge and, behind a colon, of its model: "world", "llm:gpt-4o-mini"."""
    version: str
    """Hash of all that decides the judge's verdicts: model, template, rules."""
    label: str
    """Such as "harmful" or, for over-refusal, "4_full_refusal"; "shortcircuit"; "unparsed", which is no verdict."""
    question: str
    """Hash of what the judge was asked; equal questions are asked once."""
    reply: str | None = None
    """The judge's own words; None where no model was asked."""
    tells_helpful: bool | None
    """On an answer to a benign request: whether the judge can tell helpful from unhelpful compliance. None on an attack."""


class JudgedRow(GenerationRow, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer and one judge's verdict on it: what tables and figures are made from. Never written to a file."""

    verdict: str
    judge: str
    judge_version: str
    changed: bool = False
    """Whether the stored verdict is on another text than this answer, and so counts for nothing."""
    tells_helpful: bool = True
    """On an answer to a benign request: whether the judge can tell helpful from unhelpful compliance."""


class SuffixRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The adversarial suffix that GCG found for one prompt."""

    key: str
    """Hash of prompt, model, attack settings and seed."""
    model: str
    """Content hash of the model folder."""
    benchmark: str
    """Name in eval/benchmarks.py."""
    prompt_id: str
    """Unique within the benchmark."""
    behavior: str
    """The request that the suffix follows."""
    suffix: str
    """The suffix of lowest loss, with the space that joins it to the request."""
    loss: float
    """Mean cross-entropy of the target after this suffix, in nats per token."""
    initial_loss: float
    """The same after the initial suffix."""
    losses: list[float]
    """Loss of the suffix accepted at each step."""
    idle_steps: int
    """Steps at which no candidate kept its tokens."""
    seed: int
    """As in `GenerationRow`."""


class ProbeRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One linear probe: safe against unsafe text from the hidden state of the last token."""

    key: str
    """Hash of model, texts, settings, layer and seed."""
    model: str
    """Content hash of the model folder."""
    model_kind: ModelKind
    """The stage that made the model."""
    step: Count | None = None
    """As in `GenerationRow`."""
    layer: str
    """"first", "middle" or "last", or the layer's number."""
    layer_index: int
    """1 is the output of the first block."""
    seed: int
    """0 .. seeds - 1: the balanced subset that the probe was trained on."""
    texts: str = ""
    """Hash of all texts for training and for testing, with their labels; "" in rows of earlier versions."""
    auc: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Area under the ROC curve on the balanced test set."""
    error: float
    """Its standard error over test texts (DeLong)."""
    placements: tuple[tuple[float, ...], tuple[float, ...]]
    """Of each unsafe and each safe test text, in the order of the test set, the share of the other class that it is ordered
    rightly with: by these, arms are compared on the same texts."""
    n_train: Count
    """Training texts."""
    n_test: Count
    """Test texts."""
    baseline_length_auc: float
    """The same probe on the number of tokens alone."""
    baseline_words_auc: float | None = None
    """On counts of words; None where it was not asked for."""
    baseline_untrained_auc: float | None = None
    """On the states of the network before training; None where it was not asked for."""


class CapabilityRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How well one model answered one question of a capability task."""

    key: str
    """Hash of model, task and settings; the same for all questions of a task."""
    model: str
    """Content hash of the model folder."""
    model_kind: ModelKind
    """The stage that made the model."""
    step: Count | None = None
    """As in `GenerationRow`."""
    precision: str
    """Precision of the weights."""
    benchmark: str
    """The task as the study names it; a group of lm_eval's, such as mmlu, holds several."""
    task: str
    """lm_eval's task."""
    prompt_id: str
    """Number of the question in its task."""
    question: str
    """lm_eval's hash of the question."""
    metric: str
    """lm_eval's name of the metric, such as "acc_norm"."""
    value: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """The score of the answer."""
    shots: Count
    """Answered examples before the question."""
    cut: bool = False
    """Whether the question with its examples is longer than the model's context, so that the model read only its end."""


Row = TypeVar("Row", GenerationRow, VerdictRow, SuffixRow, ProbeRow, CapabilityRow)


def row_key(**parts: Any) -> str:
    """Hash of named parts that JSON can hold, 32 hex digits."""
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """The complete rows of `path` in file order; none if there is no file."""

    def parse(line: bytes) -> Row:
        try:
            row = decode(line, row_type)
        except ValueError:  # a loss that is no number, or a damaged line, of which the slower way says more
            row = convert(json.loads(line), row_type)
        msgspec.json.encode(row)  # refuses what could not be written again
        return row

    return durable.read_jsonl(path, parse, f"a {row_type.__name__}")


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append one batch of rows in one synced write."""
    durable.append_jsonl(path, [msgspec.to_builtins(row) for row in rows])


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the whole file at once."""
    durable.write_text(path, "".join(json.dumps(msgspec.to_builtins(row), ensure_ascii=False) + "\n" for row in rows))


def finished_batches(path: Path, row_type: type[Row], batches: Sequence[Sequence[str]]) -> dict[str, Row]:
    """The rows of `path` that belong to complete batches of keys, by key.

    Rewrites the file in the order of `batches` without anything else: rows of a batch that a kill cut in two are made
    again, and rows that this element no longer wants (the model or a setting changed) move to `<name>.unused.jsonl`. So
    appending the missing batches in order gives the file of an uninterrupted run, unless earlier settings left a later
    batch done; `in_order` sorts that out at the end.
    """
    found = read_rows(path, row_type)
    by_key = {row.key: row for row in found}
    wanted = {key for batch in batches for key in batch}
    done = [by_key[key] for batch in batches if all(key in by_key for key in batch) for key in batch]
    if [row.key for row in done] != [row.key for row in found]:
        unused = [row for row in found if row.key not in wanted]
        if unused:
            append_rows(path.with_name(path.stem + ".unused.jsonl"), unused)
        write_rows(path, done)
    return {row.key: row for row in done}


def in_order(
    path: Path, row_type: type[Row], batches: Sequence[Sequence[str]], refresh: Callable[[Row], Row] = lambda row: row
) -> list[Row]:
    """All rows of a finished element in the order of `batches`; rewrites the file if it is in another order.

    `refresh` returns a row with what is no part of its key as it is now; the file is rewritten for that, too.
    """
    found = read_rows(path, row_type)
    by_key = {row.key: row for row in found}
    ordered = [refresh(by_key[key]) for batch in batches for key in batch]
    if ordered != found:
        write_rows(path, ordered)
    return ordered


@dataclass
class ModelRows:
    """The rows of one model, as its files are read one after another. Every method raises UserError for foreign rows."""

    kind: ModelKind
    recorded: str = ""
    """The hash that the model's export recorded; "" if it recorded none."""
    model: str = ""
    """The hash that the rows name; "" before the first row."""
    file: Path = Path()
    """The file with the first row."""
    _held: dict[str, Path] = field(default_factory=dict)
    """What the rows are about, each with its file."""
    _divided: dict[tuple[str, str, bool], tuple[str, Path]] = field(default_factory=dict)

    def read_answers(self, paths: Iterable[Path], task: str, decoders: Sequence[str]) -> list[GenerationRow]:
        """The rows of several files, each checked as by `add_answers`."""
        found = {path: read_rows(path, GenerationRow) for path in paths}
        for path, rows in found.items():
            self.add_answers(path, rows, task, decoders)
        return [row for rows in found.values() for row in rows]

    def add_answers(self, path: Path, rows: Sequence[GenerationRow], task: str, decoders: Sequence[str]) -> None:
        """As `add`; and the rows are of the task and its `decoders`, and of shards of the same prompts."""
        for number, row in enumerate(rows, start=1):
            if row.task != task or row.decoder not in decoders:
                found = f"of task {row.task!r} and decoder {row.decoder!r}"
                raise _foreign(path, number, found, f"the file is for {task} ({', '.join(decoders)})")
            whole, file = self._divided.setdefault((task, row.benchmark, bool(row.shard_of)), (row.shard_of, path))
            if row.shard_of != whole:
                instead = f"{file} of a shard of other prompts, since the table has changed in between"
                raise _foreign(path, number, f"of a shard of {row.benchmark}", instead, "the one of the older table")
        self.add(path, rows)

    def add(self, path: Path, rows: Sequence[GenerationRow | ProbeRow | CapabilityRow]) -> None:
        """Check the rows of `path`: of this model, each once, and those of capability of the task that the file is for."""
        for number, row in enumerate(rows, start=1):
            if row.model_kind != self.kind:
                raise _foreign(path, number, f"of a {row.model_kind} model", f"the folder is for the {self.kind} model")
            model = f"of model {row.model:.12}"
            if self.recorded and row.model != self.recorded:
                raise _foreign(path, number, model, f"the exported model is {self.recorded:.12}")
            if not self.model:
                self.model, self.file = row.model, path
            if row.model != self.model:
                instead = f"{self.file} begins with model {self.model:.12}"
                raise _foreign(path, number, model, instead, "the file of the wrong model")
            if isinstance(row, CapabilityRow) and row.benchmark != path.stem:
                raise _foreign(path, number, f"of capability task {row.benchmark}", f"the file is for {path.stem}")
            about = _about(row)
            if about in self._held:
                raise UserError(
                    f"{path}: line {number} repeats {about}, which {self._held[about]} holds already; remove the copy and "
                    "evaluate again"
                )
            self._held[about] = path


def _about(row: GenerationRow | ProbeRow | CapabilityRow) -> str:
    """What one row of a model is about, and no other."""
    if isinstance(row, ProbeRow):
        return f"probe {row.seed} of layer {row.layer}"
    if isinstance(row, CapabilityRow):
        return f"question {row.prompt_id} of {row.task} ({row.benchmark})"
    return f"sample {row.sample} of prompt {row.prompt_id} of {row.benchmark} ({row.task}, {row.decoder})"


def _foreign(path: Path, number: int, found: str, instead: str, wrong: str = "the file") -> UserError:
    return UserError(f"{path}: line {number} is {found}, and {instead}; remove {wrong} and evaluate again")


def require_different(models: Sequence[ModelRows]) -> None:
    """Raise UserError if two of the models are one: then one's rows are a copy of the other's."""
    files: dict[str, Path] = {}
    for rows in models:
        if files.get(rows.model, rows.file) != rows.file:  # points of a sweep share folders
            raise UserError(
                f"{rows.file}: holds the rows of model {rows.model:.12}, as {files[rows.model]} does; remove the copy and "
                "evaluate again (where two arms trained the same weights, leave one out of the study)"
            )
        if rows.model:
            files[rows.model] = rows.file
