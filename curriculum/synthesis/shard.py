"""How one output is made: its documents, its settings, the shards that divide the work, and their estimated cost.

All shards of an output share its settings, and the first to start writes them down: a dataset must not be made by two prompts
or by two divisions of the work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from curricula.asking import CHARACTERS_PER_TOKEN
from curricula.curriculum.sources.declared import dataset
from curricula.curriculum.sources.documents import Document, Documents
from curricula.curriculum.sources.tables import SUFFIXES, Table, require_flat
from curricula.curriculum.synthesis.kinds import AGAIN_TEMPERATURE, KINDS, SCORES, Kind, pieces
from curricula.durable import exclusive_lock, read_json, write_json
from curricula.errors import UsageError, UserError
from curricula.randomness import key_seed

PUBLISHED_CLASSIFIER = "locuslab/safety-classifier_gte-large-en-v1.5"
"""The classifier of Maini et al. 2025."""
SAMPLED_DOCUMENTS = 1000
"""Documents of a shard that an estimate is based on."""


def open_table_input(stem: Path, limit: int | None) -> Documents:
    """The rows of a table, or its first `limit`. `stem` is a folder, or a file with or without its suffix."""
    suffix = next((suffix for suffix in SUFFIXES if stem.is_file() and stem.name.endswith(suffix)), "")
    stem = stem.parent / stem.name.removesuffix(suffix)
    table = Table.open(stem)
    require_flat(stem)
    return Documents(str(stem.resolve()), table, (range(len(table))[:limit],), "text", "")


def open_dataset_input(name: str, root: Path, scores: tuple[int, ...], limit: int | None) -> Documents:
    """The documents of a dataset or, with `scores`, only those of its parts with these scores."""
    known = dataset(name).parts
    parts: list[str] = []
    for score in scores:
        named = [part for part in known if part == f"score_{score}" or part.startswith(f"score_{score}_")]
        if not named:
            raise UsageError(f"--scores {score}: dataset {name} has {', '.join(known) or 'no parts'}; choose among these")
        parts += named
    for stem in dataset(name).stems(root, tuple(parts)):
        require_flat(stem)
    return Documents.open(name, root, tuple(parts), limit)


@dataclass(frozen=True)
class SynthesisSettings:
    """Everything that determines the contents of the output."""

    kind: str
    """A name in `KINDS`."""
    input: str
    """The dataset's name, or the table's path."""
    scores: tuple[int, ...]
    """The scores whose parts of the dataset are read; empty: all parts."""
    documents: int
    parts: int
    """Number of shards that the work is divided into."""
    model: str
    prompt: str
    """Version of the prompt."""
    temperature: float
    max_tokens: int
    """Maximum length of one reply."""
    piece_characters: int
    """Longer documents are cut into pieces of this size."""
    seed: int
    classifier: str = ""
    """Served name of the classifier that scores as well; "": none."""
    request: dict[str, Any] | None = None
    """Fields merged into each request; null removes a field."""

    @property
    def how(self) -> Kind:
        return KINDS[self.kind]


@dataclass(frozen=True)
class SynthesisShard:
    """One shard of one output, with the documents of all shards."""

    settings: SynthesisSettings
    out: Path
    """The folder of the output: tables in `out`/`table`/ (scores in `out`/score_0/ to score_5/), logs in `out`/log/."""
    table: str
    number: int
    documents: Documents
    sends_seed: bool = True
    """Whether requests have a seed. Some servers refuse it."""

    @property
    def name(self) -> str:
        return f"part-{self.number:05d}-of-{self.settings.parts:05d}"

    @property
    def log(self) -> Path:
        """The folder of logs, the same for all shards."""
        return self.out / "log" / self.table

    @property
    def tables(self) -> list[Path]:
        """The files of its rows: one for each score, or one file."""
        names = [f"score_{score}" for score in SCORES] if self.settings.how.judges else [self.table]
        return [self.out / name / f"{self.name}.jsonl" for name in names]

    @property
    def numbers(self) -> range:
        """The documents of this shard. Shards are contiguous and together hold all documents."""
        documents, parts = self.settings.documents, self.settings.parts
        return range(documents * self.number // parts, documents * (self.number + 1) // parts)

    def agree(self) -> None:
        """Write the settings down if there are none yet. Raises UsageError when this output was begun with others."""
        with exclusive_lock(self.log / "settings.lock", wait_s=60):
            if not self._stored.exists():
                write_json(self._stored, asdict(self.settings))
        self.check_settings()

    def check_settings(self) -> None:
        """Raise UsageError when this output was begun with other settings. Writes nothing."""
        if not self._stored.exists():
            return
        stored, given = read_json(self._stored), asdict(self.settings) | {"scores": list(self.settings.scores)}
        if not isinstance(stored, dict):
            raise UserError(
                f"{self._stored}: holds a {type(stored).__name__}, not the settings of this output; "
                "delete the file and repeat the command that began the output"
            )
        for key, value in given.items():
            if stored.get(key) != value:
                # Not shortened, so that it can be given again.
                then, now = (json.dumps(one, ensure_ascii=False) for one in (stored.get(key), value))
                raise UsageError(
                    f"{self._stored}: this output was begun with {key} {then}, not {now}; "
                    "give that again, or name another folder with --out"
                )

    @property
    def _stored(self) -> Path:
        return self.log / "settings.json"

    def read(self) -> Iterator[Document]:
        """The documents of this shard."""
        return self.documents.read(self.numbers.start, self.numbers.stop)

    def request(self, document: Document, piece: str, place: int = 0, attempt: int = 1) -> dict[str, Any]:
        """The chat request about the piece of a document at `place`. A repeated attempt has its own seed."""
        kind, settings = self.settings.how, self.settings
        temperature = settings.temperature if attempt == 1 else max(settings.temperature, AGAIN_TEMPERATURE)
        request = {
            "model": settings.model,
            "messages": kind.prompt.messages(piece, kind.style(document.id, settings.seed)),
            "temperature": temperature,
            "max_tokens": settings.max_tokens,
        }
        if self.sends_seed:
            request["seed"] = key_seed(settings.seed, settings.kind, document.id, place, attempt) % 2**31
        return {name: value for name, value in {**request, **(settings.request or {})}.items() if value is not None}


def parse_shard(text: str) -> tuple[int, int]:
    """Shard and number of shards from I/N."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UsageError(f"--part {text}: give I/N with I from 0 to N-1, such as 3/64")
    return int(number), int(count)


def slurm_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """Shard and number of shards of this task of a Slurm array; (0, 1) outside an array."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    task, count, first, step = (int(environment.get(f"SLURM_ARRAY_TASK_{name}", 0)) for name in ("ID", "COUNT", "MIN", "STEP"))
    number = (task - first) // max(1, step)
    if not 0 <= number < count:
        raise UsageError("SLURM_ARRAY_TASK_ID: this array has gaps in its numbers; name the part with --part I/N")
    return number, count


@dataclass(frozen=True)
class Estimate:
    """Rough cost of asking about some documents."""

    documents: int
    requests: int
    tokens_in: int
    tokens_out: int
    dollars: float | None
    """Price; None if no prices were given."""


def estimates(shard: SynthesisShard, prices: tuple[float, float] | None, *counts: int) -> list[Estimate]:
    """For each of `counts`, the cost of asking about so many documents, if they are like the shard's first ones on average.

    `prices` are in dollars per million input and output tokens.
    """
    kind, settings = shard.settings.how, shard.settings
    instructions = sum(len(message["content"]) for message in kind.prompt.messages(""))
    requests = characters = sampled = 0
    for document in islice(shard.read(), SAMPLED_DOCUMENTS):
        asked = pieces(document.text, settings.piece_characters)[: None if kind.judges else 1]
        sampled += 1
        requests += len(asked)
        characters += sum(map(len, asked)) + instructions * len(asked)
    mean_requests, mean_tokens = requests / max(1, sampled), characters / CHARACTERS_PER_TOKEN / max(1, sampled)
    reply = min(kind.expected_tokens, settings.max_tokens)
    estimated = []
    for count in counts:
        tokens_in, tokens_out = round(count * mean_tokens), round(count * mean_requests * reply)
        dollars = (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6 if prices else None
        estimated.append(Estimate(count, round(count * mean_requests), tokens_in, tokens_out, dollars))
    return estimated
