"""Rows of an evaluation: what an element writes, and how a restarted element finds what is already done.

Rows are lines of JSON Lines files in their model's folder; docs/evaluation.md says what their keys hold. An element appends one
whole batch at a time, and a batch is a fixed run of prompts, so an element that was killed and restarted ends with the same
bytes as one that was not. `ModelRows` refuses rows of another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from curricula import durable
from curricula.errors import UserError
from curricula.settings import convert, decode

ModelKind = str
"""The name of the stage that made a model; "base" after pretraining."""
MODEL_KINDS: tuple[ModelKind, ...] = ("base", "instruct", "benign")
"""The paper's kinds of model."""
Precision = Literal["float32", "bfloat16", "float64"]
Count = Annotated[int, msgspec.Meta(ge=0)]

ATTACK_VERDICTS = ("harmful", "safe", "refusal", "shortcircuit", "unparsed")
"""Verdicts on a harmful request. Only "harmful" is a successful attack; "unparsed" is no verdict and is counted separately."""

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
    """Summed log-probability of the answer's tokens, including its end mark or tag, in nats."""
    lost: float
    """Sum over the steps of the gap in log-probability between the likeliest candidate and the likeliest survivor, in nats."""
    dropped: Count
    """Steps at which the likeliest candidate was dropped."""
    steps: Count
    """Steps of the search: as many as the answer has tokens, or more."""


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
    """Step of the stage at which the model was taken; None for its end."""
    raw: bool
    """Whether the model's prompts normally have no chat template. In the task template-removal no prompt has one."""
    precision: str
    """Precision of the weights."""
    benchmark: str
    """Name in eval/benchmarks.py; "advbench_completions" if jb_completions is not available."""
    prompt_id: str
    """Unique within the benchmark."""
    category: str
    """The benchmark's own class of the prompt (its source dataset for jb_completions); "" if it has none."""
    behavior: str
    """The request that the judge is asked about; equals `prompt` for plain requests."""
    prompt: str
    """The text given to the model, before the chat template and after any change by an attack."""
    decoder: str
    """Name in eval/decoding/registry.py, with the task's prefix: "topk", "gcg+topk"."""
    sample: Count
    """Number of the sample, 0 .. samples - 1, or of the attempt for best of N; always 0 for decoders with one answer."""
    seed: int
    """The arm's training seed, or --seed of `curricula eval`; a row's draws come from (seed, benchmark, prompt id, sample)."""
    context: str = ""
    """The text that a contextual behavior of HarmBench refers to; also within `prompt`."""
    cluster: str = ""
    """Cluster of near-duplicate prompts, over all benchmarks."""
    shard_of: str = ""
    """Hash of all prompts that are divided into shards; "" without shards, and in rows of earlier versions."""
    prefill: str = ""
    """Beginning of the answer that an attack supplied; `response` includes it."""
    response: str
    """Generated text, cut before the tag and the end mark."""
    completion: str = ""
    """The safe completion shown instead of an answer that was cut at the tag."""
    tokens: Count
    """Generated tokens, including the tag and the end mark."""
    finish: str
    """"end" (end mark), "length", or "tag" (cut at the tag)."""
    shortcircuit: bool
    """Whether the model wrote the tag, even if the answer was not cut there."""
    pruning: Pruning | None = None
    """Cost of SafeBeam's pruning; None for other decoders and in rows of earlier versions."""


class VerdictRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One judge's verdict on one answer."""

    key: str
    """Key of the GenerationRow."""
    judge: str
    """Name of the judge and, after a colon, of its model: "world", "llm:gpt-4o-mini"."""
    version: str
    """Hash of everything that decides the judge's verdicts: model, template, rules."""
    label: str
    """The verdict, such as "harmful", "shortcircuit" or, for over-refusal, "4_full_refusal"; "unparsed" is no verdict."""
    question: str
    """Hash of what the judge was asked; equal questions are asked once."""
    reply: str | None = None
    """The reply of the judge's model; None if no model was asked."""
    tells_helpful: bool | None
    """For an answer to a benign request, whether the judge can tell helpful from unhelpful compliance; None for an attack."""


class JudgedRow(GenerationRow, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer with one judge's verdict. Tables and figures are made from these rows, which are never written to a file."""

    verdict: str
    judge: str
    judge_version: str
    changed: bool = False
    """Whether the stored verdict is on another text than this answer and therefore does not count."""
    tells_helpful: bool = True
    """For an answer to a benign request, whether the judge can tell helpful from unhelpful compliance."""


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
    """Loss of the target after the initial suffix."""
    losses: list[float]
    """Loss of the suffix accepted at each step."""
    idle_steps: int
    """Steps at which no candidate kept its tokens when it was decoded and encoded again."""
    seed: int
    """As in `GenerationRow`."""


class MeasuredRow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What rows of probes and of capability have in common."""

    key: str
    """Hash of model, settings and what was asked: the texts, layer and seed of a probe, or the whole task."""
    model: str
    """Content hash of the model folder."""
    model_kind: ModelKind
    """The stage that made the model."""
    step: Count | None = None
    """As in `GenerationRow`."""


class ProbeRow(MeasuredRow, frozen=True, kw_only=True):
    """One linear probe, which tells safe from unsafe text by the hidden state of the last token."""

    layer: str
    """"first", "middle" or "last", or the layer's number."""
    layer_index: int
    """Number of the layer; 1 is the output of the first block."""
    seed: int
    """Number of the balanced subset that the probe was trained on, 0 .. seeds - 1."""
    texts: str = ""
    """Hash of all training and test texts with their labels; "" in rows of earlier versions."""
    auc: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Area under the ROC curve on the balanced test set."""
    error: float
    """Standard error of the AUC over test texts (DeLong)."""
    placements: tuple[tuple[float, ...], tuple[float, ...]]
    """For each unsafe and each safe test text, in the order of the test set, the share of the other class that it is ranked
    correctly against. Arms are compared by these on the same texts."""
    n_train: Count
    """Training texts."""
    n_test: Count
    """Test texts."""
    baseline_length_auc: float
    """AUC of the same probe on the number of tokens alone."""
    baseline_words_auc: float | None = None
    """AUC of the same probe on word counts; None if it was not asked for."""
    baseline_untrained_auc: float | None = None
    """AUC of the same probe on the states of the network before training; None if it was not asked for."""


class CapabilityRow(MeasuredRow, frozen=True, kw_only=True):
    """How well one model answered one question of a capability task."""

    precision: str
    """Precision of the weights."""
    benchmark: str
    """Name of the task in the study; it can be a group of lm_eval's tasks, such as mmlu."""
    task: str
    """lm_eval's name of the single task."""
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
    """Whether the question with its examples exceeds the model's context, so that the model read only its end."""
    questions: Count = 0
    """Number of questions in the whole file, so that a file that was cut shows; 0 in rows of earlier versions."""


Row = TypeVar("Row", GenerationRow, VerdictRow, SuffixRow, ProbeRow, CapabilityRow)


def row_key(*, if_set: Mapping[str, Any] = MappingProxyType({}), **parts: Any) -> str:
    """Hash of named parts that JSON can hold, 32 hex digits.

    Parts in `if_set` count only if they have a value. So keys stay the same when a later version adds a part.
    """
    parts |= {name: value for name, value in if_set.items() if value}
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def read_rows(path: Path, row_type: type[Row]) -> list[Row]:
    """The complete rows of `path` in file order; empty if there is no file."""

    def parse(line: bytes) -> Row:
        try:
            row = decode(line, row_type)
        except ValueError:  # a NaN loss, which json reads, or a damaged line, about which the other two say more
            row = convert(json.loads(line), row_type)
        msgspec.json.encode(row)  # raises for text that could not be written again
        return row

    return durable.read_jsonl(path, parse, f"a {row_type.__name__}")


def append_rows(path: Path, rows: Iterable[msgspec.Struct]) -> None:
    """Append one batch of rows in one synced write."""
    durable.append_jsonl(path, [msgspec.to_builtins(row) for row in rows])


def write_rows(path: Path, rows: Iterable[msgspec.Struct]) -> None:
    """Replace the whole file at once."""
    durable.write_text(path, "".join(json.dumps(msgspec.to_builtins(row), ensure_ascii=False) + "\n" for row in rows))


def finished_batches(path: Path, row_type: type[Row], batches: Sequence[Sequence[str]]) -> dict[str, Row]:
    """The rows of `path` that belong to complete batches, by key. `batches` are lists of keys.

    Rewrites the file so that it holds these rows alone, in the order of `batches`. The rows of a batch that a kill left
    incomplete are dropped and must be generated again. Rows with other keys, because the model or a setting changed, move to
    `<name>.unused.jsonl`. Appending the missing batches in order then gives the file of an uninterrupted run, unless earlier
    settings left a later batch finished; `in_order` corrects that at the end.
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
    """All rows of a finished element in the order of `batches`, with current values of the fields that are not in their keys,
    which `refresh` sets. Rewrites the file if that changes it."""
    found = read_rows(path, row_type)
    by_key = {row.key: row for row in found}
    ordered = [refresh(by_key[key]) for batch in batches for key in batch]
    if ordered != found:
        write_rows(path, ordered)
    return ordered


@dataclass
class ModelRows:
    """Checks that the rows in a model's files, read one after another, belong to that model.

    Every method raises UserError for rows that do not.
    """

    kind: ModelKind
    recorded: str = ""
    """Hash that the model's export recorded; "" if it recorded none."""
    model: str = ""
    """Hash of the model in the rows; "" before the first row."""
    file: Path = Path()
    """File of the first row."""
    _held: dict[str, Path] = field(default_factory=dict)
    """File of each row so far, by what the row is about."""
    _divided: dict[tuple[str, str, bool], tuple[str, Path]] = field(default_factory=dict)
    """`shard_of` and file of the first row, by task, benchmark and whether the row is of a shard."""

    def read_answers(self, paths: Iterable[Path], task: str, decoders: Sequence[str]) -> list[GenerationRow]:
        """The rows of several files of answers, checked as in `add`."""
        answers: list[GenerationRow] = []
        for path in paths:
            rows = read_rows(path, GenerationRow)
            self.add(path, rows, task, decoders)
            answers += rows
        return answers

    def add(
        self, path: Path, rows: Sequence[GenerationRow | ProbeRow | CapabilityRow], task: str = "", decoders: Sequence[str] = ()
    ) -> None:
        """Check that the rows of `path` are of this model and of what the file is for, and that none repeats another.

        A file of answers is for `task` and its `decoders`, and all shards must divide the same prompts. The model is checked
        first: rows of another model can differ in everything else, too.
        """
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
            if isinstance(row, GenerationRow):
                if row.task != task or row.decoder not in decoders:
                    found = f"of task {row.task!r} and decoder {row.decoder!r}"
                    raise _foreign(path, number, found, f"the file is for {task} ({', '.join(decoders)})")
                shard_of, file = self._divided.setdefault((task, row.benchmark, bool(row.shard_of)), (row.shard_of, path))
                if row.shard_of != shard_of:
                    instead = f"{file} is of a shard of other prompts, since the table changed in between"
                    raise _foreign(path, number, f"of a shard of {row.benchmark}", instead, "the file of the older table")
            if isinstance(row, CapabilityRow) and row.benchmark != path.stem:
                raise _foreign(path, number, f"of capability task {row.benchmark}", f"the file is for {path.stem}")
            about = _about(row)
            if about in self._held:
                raise UserError(
                    f"{path}: line {number} repeats {about}, which is already in {self._held[about]}; remove the copy and "
                    "evaluate again"
                )
            self._held[about] = path


def _about(row: GenerationRow | ProbeRow | CapabilityRow) -> str:
    """What the row is about. No two rows of a model are about the same."""
    if isinstance(row, ProbeRow):
        return f"probe {row.seed} of layer {row.layer}"
    if isinstance(row, CapabilityRow):
        return f"question {row.prompt_id} of {row.task} ({row.benchmark})"
    return f"sample {row.sample} of prompt {row.prompt_id} of {row.benchmark} ({row.task}, {row.decoder})"


def _foreign(path: Path, number: int, found: str, instead: str, wrong: str = "the file") -> UserError:
    return UserError(f"{path}: line {number} is {found}, but {instead}; remove {wrong} and evaluate again")


def require_different(models: Sequence[ModelRows]) -> None:
    """Raise UserError if two of the models have the same hash: the rows of one are then a copy of the other's."""
    files: dict[str, Path] = {}
    for rows in models:
        if files.get(rows.model, rows.file) != rows.file:  # points of a sweep share folders
            raise UserError(
                f"{rows.file}: holds the rows of model {rows.model:.12}, as {files[rows.model]} does; remove the copy and "
                "evaluate again (if two arms trained the same weights, leave one out of the study)"
            )
        if rows.model:
            files[rows.model] = rows.file
