"""What an output folder is being made with, how its work is divided, and what that will cost.

All parts of one output share its settings, written down by the part that comes first: half of a dataset by one prompt and
half by another, or by two divisions of the work, would be no dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from curricula.curriculum.synthesis.inputs import Input
from curricula.curriculum.synthesis.kinds import KINDS, Kind, pieces
from curricula.durable import exclusive_lock, read_json, write_json
from curricula.errors import UsageError, UserError

CHARACTERS_PER_TOKEN = 4
SAMPLED_DOCUMENTS = 1000


def parse_part(words: str) -> tuple[int, int]:
    """Part and number of parts from I/N."""
    number, slash, count = words.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UsageError(f"--part {words}: give I/N with I from 0 to N-1, such as 3/64")
    return int(number), int(count)


def slurm_part(environment: Mapping[str, str]) -> tuple[int, int]:
    """Part and number of parts from the Slurm array this is a task of; the whole outside of one."""
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
    raise UsageError("SLURM_ARRAY_TASK_ID: this array is not numbered without gaps; name the part with --part I/N")


@dataclass(frozen=True)
class Settings:
    """All that decides what the output says."""

    kind: str
    input: str
    scores: tuple[int, ...]  # parts of the dataset; none: all of it
    documents: int
    parts: int  # how many the work is divided into
    model: str
    prompt: str  # version
    temperature: float
    max_tokens: int
    piece_characters: int
    seed: int
    classifier: str = ""

    @property
    def how(self) -> Kind:
        return KINDS[self.kind]

    def numbers(self, part: int) -> range:
        """The documents of a part: contiguous, and all parts together are all documents."""
        return range(self.documents * part // self.parts, self.documents * (part + 1) // self.parts)


@dataclass(frozen=True)
class Place:
    """Where the files of one output lie: tables in `out`/NAME/ (`out`/score_0/ to score_5/ of scores), the rest beside."""

    out: Path
    name: str

    @property
    def state(self) -> Path:
        return self.out / "log" / self.name

    @property
    def _settings(self) -> Path:
        return self.state / "settings.json"

    def agree(self, settings: Settings) -> None:
        """Write the settings down, or raise UsageError when this output was begun with others."""
        with exclusive_lock(self.state / "settings.lock", wait_s=60):
            if not self._settings.exists():
                write_json(self._settings, asdict(settings))
        self.check(settings)

    def check(self, settings: Settings) -> None:
        """Raise UsageError when this output was begun with other settings; writes nothing."""
        path = self._settings
        if not path.exists():
            return
        before, now = read_json(path), asdict(settings) | {"scores": list(settings.scores)}
        if not isinstance(before, dict):
            raise UserError(
                f"{path}: holds a {type(before).__name__}, where the settings of this output are needed; "
                "delete the file and give the command that the output was begun with"
            )
        for key, value in now.items():
            if before.get(key) != value:
                raise UsageError(
                    f"{path}: this output was begun with {key} {before.get(key)!r}, not {value!r}; "
                    "give that again, or name another folder with --out"
                )


@dataclass(frozen=True)
class Estimate:
    """Requests and tokens for some documents; dollars when prices were given."""

    documents: int
    requests: int
    tokens_in: int
    tokens_out: int
    dollars: float | None


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens."""

    tokens_in: float
    tokens_out: float


@dataclass(frozen=True)
class Estimator:
    """Means over the first documents of a part, from which any number of documents is estimated."""

    requests: float
    tokens_in: float
    tokens_out: float
    prices: Prices | None

    @classmethod
    def sample(cls, settings: Settings, documents: Input, part: int, prices: Prices | None) -> Estimator:
        kind, numbers = settings.how, settings.numbers(part)
        instructions = sum(len(message["content"]) for message in kind.prompt.messages(""))
        requests = characters = sampled = 0
        for document in islice(documents.read(numbers.start, numbers.stop), SAMPLED_DOCUMENTS):
            asked = pieces(document.text, settings.piece_characters)[: None if kind.judges else 1]
            sampled += 1
            requests += len(asked)
            characters += sum(map(len, asked)) + instructions * len(asked)
        mean = requests / max(1, sampled)
        reply = min(kind.expected_tokens, settings.max_tokens)
        return cls(mean, characters / CHARACTERS_PER_TOKEN / max(1, sampled), mean * reply, prices)

    def of(self, documents: int) -> Estimate:
        tokens_in, tokens_out = round(documents * self.tokens_in), round(documents * self.tokens_out)
        dollars = None
        if self.prices:
            dollars = (tokens_in * self.prices.tokens_in + tokens_out * self.prices.tokens_out) / 1e6
        return Estimate(documents, round(documents * self.requests), tokens_in, tokens_out, dollars)
