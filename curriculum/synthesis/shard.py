"""How one output is made: its documents, its settings, its folder, the shards its work is divided into, and what they cost.

All shards of an output share its settings; the first to start writes them down. A dataset made half by one prompt and half by
another, or by two divisions of the work, would be no dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from curricula.asking import CHARACTERS_PER_TOKEN
from curricula.curriculum.sources.declared import dataset
from curricula.curriculum.sources.documents import Document, Documents
from curricula.curriculum.sources.tables import SUFFIXES, Table
from curricula.curriculum.synthesis.kinds import AGAIN_TEMPERATURE, KINDS, Kind, pieces
from curricula.durable import exclusive_lock, read_json, write_json
from curricula.errors import UsageError, UserError
from curricula.randomness import key_seed

SAMPLED_DOCUMENTS = 1000
"""Documents of a shard that an estimate reads."""


def open_table_input(stem: Path, limit: int | None) -> Documents:
    """The rows of a table, or the first ones; `stem` may be a folder, or a file with or without its suffix."""
    suffix = next((suffix for suffix in SUFFIXES if stem.is_file() and stem.name.endswith(suffix)), "")
    stem = stem.with_name(stem.name.removesuffix(suffix))
    table = Table.open(stem)
    return Documents(str(stem.resolve()), table, (range(len(table))[:limit],), "text", "")


def open_dataset_input(name: str, root: Path, scores: tuple[int, ...], limit: int | None) -> Documents:
    """The documents of a dataset; with `scores`, only of its parts with these scores."""
    known = dataset(name).parts
    parts: list[str] = []
    for score in scores:
        named = [part for part in known if part == f"score_{score}" or part.startswith(f"score_{score}_")]
        if not named:
            raise UsageError(f"--scores {score}: dataset {name} has {', '.join(known) or 'no parts'}; choose among these")
        parts += named
    return Documents.open(name, root, tuple(parts), limit)


@dataclass(frozen=True)
class SynthesisSettings:
    """Everything that decides what the output says."""

    kind: str
    """A name in `KINDS`."""
    input: str
    """The dataset's name, or the table's path."""
    scores: tuple[int, ...]
    """The parts of the dataset to read, by score; empty: all of it."""
    documents: int
    parts: int
    """Number of shards that the work is divided into."""
    model: str
    prompt: str
    """Version of the prompt."""
    temperature: float
    max_tokens: int
    """Of one reply."""
    piece_characters: int
    """Longer documents are cut into pieces of this size."""
    seed: int
    classifier: str = ""
    """Path or served name of a second judge of scores; "": none."""

    @property
    def how(self) -> Kind:
        return KINDS[self.kind]

    def numbers(self, shard: int) -> range:
        """The documents of a shard. Shards are contiguous and together hold all documents."""
        return range(self.documents * shard // self.parts, self.documents * (shard + 1) // self.parts)


@dataclass(frozen=True)
class OutputFolder:
    """Where the files of one output lie: tables in `out`/NAME/ (scores in `out`/score_0/ to score_5/), logs in `out`/log/."""

    out: Path
    name: str

    @property
    def log(self) -> Path:
        return self.out / "log" / self.name

    @property
    def _settings(self) -> Path:
        return self.log / "settings.json"

    def agree(self, settings: SynthesisSettings) -> None:
        """Write the settings down. Raises UsageError when this output was begun with others."""
        with exclusive_lock(self.log / "settings.lock", wait_s=60):
            if not self._settings.exists():
                write_json(self._settings, asdict(settings))
        self.check(settings)

    def check(self, settings: SynthesisSettings) -> None:
        """Raise UsageError when this output was begun with other settings. Writes nothing."""
        path = self._settings
        if not path.exists():
            return
        stored, given = read_json(path), asdict(settings) | {"scores": list(settings.scores)}
        if not isinstance(stored, dict):
            raise UserError(
                f"{path}: holds a {type(stored).__name__}, where the settings of this output are needed; "
                "delete the file and repeat the command that began the output"
            )
        for key, value in given.items():
            if stored.get(key) != value:
                raise UsageError(
                    f"{path}: this output was begun with {key} {stored.get(key)!r}, not {value!r}; "
                    "give that again, or name another folder with --out"
                )


def shard_name(shard: int, shards: int) -> str:
    return f"part-{shard:05d}-of-{shards:05d}"


@dataclass(frozen=True)
class SynthesisShard:
    """One shard of one output, with the documents of all shards."""

    settings: SynthesisSettings
    folder: OutputFolder
    number: int
    documents: Documents
    sends_seed: bool = True
    """Some servers refuse requests with a seed."""

    @property
    def name(self) -> str:
        return shard_name(self.number, self.settings.parts)

    @property
    def numbers(self) -> range:
        return self.settings.numbers(self.number)

    def read(self) -> Iterator[Document]:
        """The documents of this shard."""
        return self.documents.read(self.numbers.start, self.numbers.stop)

    def first_request(self, document: Document) -> dict[str, Any]:
        return self.request(document, pieces(document.text, self.settings.piece_characters)[0])

    def request(self, document: Document, piece: str, place: int = 0, attempt: int = 1) -> dict[str, Any]:
        """The chat request about the piece of a document at `place`. A later attempt draws anew."""
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
        return request


def parse_shard(text: str) -> tuple[int, int]:
    """Shard and number of shards from I/N."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UsageError(f"--part {text}: give I/N with I from 0 to N-1, such as 3/64")
    return int(number), int(count)


def slurm_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """Shard and number of shards from the Slurm array that this is a task of; outside of one, the whole."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    try:
        task, count, first, step = (
            int(environment.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", ""), ("COUNT", ""), ("MIN", "0"), ("STEP", "1"))
        )
        number = (task - first) // max(1, step)
        if 0 <= number < count:
            return number, count
    except ValueError:
        pass
    raise UsageError("SLURM_ARRAY_TASK_ID: this array has gaps in its numbers; name the part with --part I/N")


@dataclass(frozen=True)
class Estimate:
    """What asking about some documents will take."""

    documents: int
    requests: int
    tokens_in: int
    tokens_out: int
    dollars: float | None
    """None: no prices were given."""


def estimates(shard: SynthesisShard, prices: tuple[float, float] | None, *counts: int) -> list[Estimate]:
    """What asking about so many documents will take, each like the mean of the shard's first ones.

    `prices` are dollars per million tokens in and out.
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
    found = []
    for count in counts:
        tokens_in, tokens_out = round(count * mean_tokens), round(count * mean_requests * reply)
        dollars = (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6 if prices else None
        found.append(Estimate(count, round(count * mean_requests), tokens_in, tokens_out, dollars))
    return found
