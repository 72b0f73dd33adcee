"""The benchmarks by name: their files and hub tables, their licences, and how their rows become prompts.

docs/decoding.md describes the published benchmarks, docs/evaluation.md a study's own.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from curricula.curriculum.sources.declared import DATASETS, DeclaredTable, Reads
from curricula.curriculum.sources.hub import Download, downloads_of, fetch
from curricula.curriculum.sources.tables import Place, Row, Table, is_utf8, require_flat, table_exists
from curricula.errors import UsageError, UserError
from curricula.randomness import key_seed
from curricula.settings import decode

LONGEST_PROMPT = 200_000
"""Most characters of a prompt; HarmBench's longest has 4,000."""
PARTS = ("id", "text", "behavior", "context", "target", "category", "cluster", "tags")
"""The parts of a prompt that a row of a table can hold."""
COPYRIGHT_TAG = "hash_check"
"""The tag of HarmBench's copyright rows."""
PUBLISHED = Path(__file__).with_name("published.json")
"""File of a `Published`, written by `tests/support/published_clusters.py`."""
Use = Literal["attack", "completion", "overrefusal", "capability"]


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One request to a model."""

    id: str
    """Unique within the benchmark."""
    benchmark: str
    text: str
    """The text given to the model, before any chat template."""
    behavior: str
    """The request that the judge is asked about."""
    context: str = ""
    """The text that a contextual behaviour of HarmBench refers to; also within `text`."""
    category: str = ""
    copyright: bool = False
    """Whether a HarmBench prompt asks for copyrighted text, which no classifier can judge."""
    cluster: str = ""
    """Cluster of near-duplicate requests, over all benchmarks (`cluster_of`)."""
    target: str = ""
    """Beginning of a compliant answer, if the benchmark gives one; in own sets of kind capability, the right answer."""
    prefill: str = ""
    """Beginning of the answer that an attack supplies."""
    raw: bool = False
    """Whether an attack leaves the chat template out."""
    attempt: int | None = None
    """Number of the attempt, for an attack that makes several attempts on one prompt."""
    shard_of: str = ""
    """Hash of all prompts that are divided into shards; "" without shards."""


@dataclass(frozen=True)
class Benchmark:
    """Where to find one benchmark and how to read its rows."""

    use: Use
    file: str
    """Path of the publishers' file within the data folder."""
    hub: str
    licence: str
    rows: int
    """Prompts of the published set, including HarmBench's copyright rows."""
    columns: dict[str, tuple[str, ...]]
    """For each part of a prompt, the columns that can hold it; the first with a value counts."""
    make: Callable[[dict[str, str]], dict[str, Any]]
    """Turns the parts of a row into fields of `Prompt`."""
    hub_configs: tuple[str | None, ...] = (None,)
    hub_split: str = "train"
    hub_revision: str | None = None
    """Commit on the hub; None fetches the newest. Either way, `texts`, if given, pins the content."""
    copyright_rows: int = 0
    """Number of `rows` that are left out unless `harmbench_copyright` is set."""
    texts: str = ""
    """The `texts_hash` of the published set; "" if only its size is known."""
    keep: Callable[[dict[str, Any]], bool] = lambda row: True
    """Whether a row belongs to the benchmark."""

    def stem(self, root: Path) -> Path:
        """This benchmark's table in a data folder, without the suffix of its format."""
        return (root / self.file).with_suffix("")


def plain(parts: dict[str, str]) -> dict[str, Any]:
    text = parts["text"].strip()
    return {"text": text, "behavior": text, "category": parts["category"], "target": parts["target"].strip()}


def harmbench(parts: dict[str, str]) -> dict[str, Any]:
    # The published pipeline puts the context first, then a rule, then the request.
    text = f"{parts['context']}\n\n---\n\n{parts['text']}" if parts["context"] else parts["text"]
    return {**plain(parts), "text": text.strip(), "context": parts["context"], "copyright": COPYRIGHT_TAG in parts["tags"]}


def completion(parts: dict[str, str]) -> dict[str, Any]:
    # A trailing space would be its own token and change how the first word is tokenised.
    return {"text": parts["text"].rstrip(), "behavior": parts["behavior"], "category": parts["category"]}


def advbench_completion(parts: dict[str, str]) -> dict[str, Any]:
    beginning = parts["text"].removeprefix("Sure, ").strip()
    return {"text": beginning[:1].upper() + beginning[1:], "behavior": parts["behavior"], "category": "advbench-targets"}


# fmt: off
BENCHMARKS: dict[str, Benchmark] = {
    # The hub has all 400 behaviours; the 80 of the validation split are left out.
    "harmbench": Benchmark(
        "attack", "harmbench/harmbench_behaviors_text_test.csv", "walledai/HarmBench", "MIT", 320,
        {"text": ("Behavior", "prompt"), "id": ("BehaviorID",), "category": ("SemanticCategory", "category"),
         "context": ("ContextString", "context"), "tags": ("Tags", "tags")},
        harmbench, hub_configs=("standard", "contextual", "copyright"), copyright_rows=80, texts="13389ef4e0620f8a",
    ),
    "advbench": Benchmark(
        "attack", "advbench/harmful_behaviors.csv", "walledai/AdvBench", "MIT", 520,
        {"text": ("goal", "prompt"), "target": ("target",)}, plain,
        hub_revision="9d4730540082fa4017450b65ca1c0e1d8d30446e", texts="3efc2fd594545b9a",
    ),
    "jailbreakbench": Benchmark(
        "attack", "jailbreakbench/harmful-behaviors.csv", "JailbreakBench/JBB-Behaviors", "MIT", 100,
        {"text": ("Goal",), "id": ("Index", ""), "category": ("Category",), "target": ("Target",)}, plain,
        hub_configs=("behaviors",), hub_split="harmful",
        hub_revision="886acc352a31533ffbcf4ef22c744658688086fc", texts="25205c3154e73763",
    ),
    # The hub has the development and the test phase; the 50 behaviours of the development phase are left out.
    "tdc": Benchmark(
        "attack", "tdc2023/test_behaviors.json", "walledai/TDC23-RedTeaming", "MIT", 50,
        {"text": ("text", "prompt")}, plain, texts="b5904e25a8402b63",
    ),
    "jb_completions": Benchmark(
        "completion", "jb_completions/train.jsonl", "locuslab/jb-completions", "not stated", 990,
        {"text": ("completion_behavior",), "behavior": ("original_behavior",), "category": ("source_dataset",)}, completion,
    ),
    # Stand-in for jb_completions without the hub: AdvBench's affirmative targets are harmful beginnings once "Sure, " is gone
    # ("Here is a script that ...").
    "advbench_completions": Benchmark(
        "completion", "advbench/harmful_behaviors.csv", "walledai/AdvBench", "MIT", 520,
        {"text": ("target",), "behavior": ("goal", "prompt")}, advbench_completion,
        hub_revision="9d4730540082fa4017450b65ca1c0e1d8d30446e", texts="cc6baa36f3b201a6",
    ),
    # The hub has 52,002 rows; those with an input are left out.
    "alpaca": Benchmark(
        "overrefusal", "stanford_alpaca/alpaca_instructions_noinput.json", "tatsu-lab/alpaca", "CC-BY-NC-4.0", 31_323,
        {"text": ("instruction",), "category": ("category",)}, plain,
        hub_revision="dce01c9b08f87459cf36a430d809084718273017", texts="db8cb442a25e7568",
        keep=lambda row: not row.get("input"),
    ),
    # The following are not in the paper. XSTest: harmless requests that sound harmful, without its 200 harmful contrasts.
    "xstest": Benchmark(
        "overrefusal", "xstest/xstest_prompts.csv", "walledai/XSTest", "CC-BY-4.0", 250,
        {"text": ("prompt",), "id": ("id",), "category": ("type",)}, plain,
        hub_split="test", hub_revision="f1d713187c61b6ae64e602d74f0b3d812cc2e8e8",
        keep=lambda row: row.get("label") == "safe" if row.get("label") else not str(row["type"]).startswith("contrast"),
    ),
    # The requests of OR-Bench that most models refuse.
    "orbench_hard": Benchmark(
        "overrefusal", "or_bench/or-bench-hard-1k.csv", "bench-llm/or-bench", "CC-BY-4.0", 1_319,
        {"text": ("prompt",), "category": ("category",)}, plain, hub_configs=("or-bench-hard-1k",),
    ),
    # Harmless and controversial requests, which the category tells apart. Maini et al. use 300 of them.
    "phtest": Benchmark(
        "overrefusal", "phtest/PHTest.csv", "furonghuang-lab/PHTest", "MIT", 3_269,
        {"text": ("Request",), "category": ("Harmfulness",)}, plain,
    ),
}
# fmt: on


class PromptSet(DeclaredTable, frozen=True):
    """A table of prompts. Its name can be used wherever benchmarks or capability tasks are named."""

    column: str = "prompt"
    """The column of prompts."""
    kind: Use = "attack"
    """What the prompts are: harmful requests (attack), harmful beginnings for base models (completion), harmless requests
    (overrefusal), or questions with a right answer (capability)."""
    behavior: str | None = None
    """The column of the request that the judge is asked about; by default the prompt itself."""
    context: str | None = None
    """The column of a text that the prompt refers to. The model reads it before the prompt; the judge sees it if its template
    has a place for it."""
    target: str | None = None
    """The column of right answers, which sets of kind capability need."""
    category: str | None = None
    """The column of the prompt's class, which the rows repeat."""
    id: str | None = None
    """The column of unique ids; by default the row's number."""
    cluster: str | None = None
    """The column of clusters: prompts with the same value count as one cluster, not as independent draws. By default, equal
    prompts are a cluster."""

    def check(self) -> None:
        super().check()
        if self.dataset is not None:
            raise ValueError(f"dataset {self.dataset!r} is a set of training data; name a path or a hub dataset of prompts")
        if (self.kind == "capability") != (self.target is not None):
            raise ValueError(
                f"kind is {self.kind!r} and target {self.target!r}; name the column of right answers as target in sets of "
                "kind capability, and in no others"
            )

    def reads(self) -> dict[str, Reads]:
        texts, values = ("column", "behavior"), ("target", "context", "category", "id", "cluster")
        named = {key: getattr(self, key) for key in (*texts, *values)}
        return {key: Reads((name,), "text" if key in texts else "value") for key, name in named.items() if name}


def load_prompts(
    name: str,
    root: Path | None,
    *,
    limit: int | None = None,
    with_copyright: bool = False,
    accept_changed: Container[str] = (),
    own: Mapping[str, PromptSet] = MappingProxyType({}),
) -> list[Prompt]:
    """Prompts of a benchmark in file order.

    `limit` takes a sample that depends on the prompts' texts alone: it is the same for every model and file, and part of any
    larger sample. `jb_completions` falls back to `advbench_completions` if the folder `root` lacks its file. `own` are the sets
    that a study declares. Raises UserError for a set that differs from the published one, unless `accept_changed` names it.
    """
    if name in own:
        prompts = own_prompts(name, own[name], root)
    else:
        prompts, where, mend = _published_prompts(name, root)
        changed, source = _difference(prompts, root), prompts[0].benchmark
        if changed and source not in accept_changed and name not in accept_changed:
            raise UserError(
                f"{where}: {changed}; {mend}, or accept it for benchmark {source} in the study "
                f"(evaluation.accept_changed: [{source}]) or with `curricula eval --accept-changed {source}`"
            )
    allowed = [prompt for prompt in prompts if with_copyright or not prompt.copyright]
    return limited(allowed, prompts[0].benchmark, limit)


def limited(prompts: list[Prompt], source: str, limit: int | None) -> list[Prompt]:
    """A sample of `limit` prompts in their order, drawn by their texts alone; None takes all."""
    if limit is None or limit >= len(prompts):
        return prompts
    by_lot = sorted(range(len(prompts)), key=lambda i: key_seed("prompts", source, _normal(prompts[i].text)))
    return [prompts[i] for i in sorted(by_lot[:limit])]


def difference(name: str, root: Path | None) -> str:
    """How the benchmark's set differs from the published one, such as "10 prompts, where 520 were published"; "" if equal."""
    prompts, _, _ = _published_prompts(name, root)
    return _difference(prompts, root)


def _difference(prompts: Sequence[Prompt], root: Path | None) -> str:
    entry = BENCHMARKS[prompts[0].benchmark]
    if root is not None and (root / "world.json").exists():
        return ""
    if len(prompts) != entry.rows:
        return f"{len(prompts):,} prompts, where {entry.rows:,} were published"
    if entry.texts and texts_hash(prompts) != entry.texts:
        return f"{len(prompts):,} prompts, as published, but not with the published texts"
    return ""


def texts_hash(prompts: Iterable[Prompt]) -> str:
    """Hash of the prompts' texts and behaviours, 16 hex digits. Order, white space and the file's format do not count."""
    texts = (_normal(f"{item.text}\n{item.behavior}") for item in prompts)
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]


def _normal(text: str) -> str:
    """A text in a form that all files of a published set have in common."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class Published(msgspec.Struct, frozen=True):
    """Clusters and left-out splits of the published files, by `request_hash`, whichever benchmarks a run reads."""

    clusters: dict[str, str]
    """Request -> cluster, for clusters of more than one request."""
    left_out: dict[str, list[str]]
    """Benchmark -> requests, with their contexts, of its validation or development split, which is not attacked."""


@lru_cache(maxsize=1)
def published() -> Published:
    return decode(PUBLISHED.read_bytes(), Published)


def cluster_of(request: str) -> str:
    """The cluster of a request, 12 hex digits. Near-duplicates among the public benchmarks share one (docs/decoding.md)."""
    own = request_hash(request)
    return published().clusters.get(own, own)


def request_hash(text: str) -> str:
    plain = latin_words(text) or text  # a request in another script has no Latin words
    return hashlib.sha256(plain.encode(errors="surrogatepass")).hexdigest()[:12]


def latin_words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def read_for(name: str, root: Path | None) -> str:
    """The benchmark that is read for `name`: "advbench_completions" if the folder `root` lacks the file of jb_completions."""
    lacks_it = name == "jb_completions" and root is not None and not table_exists(BENCHMARKS[name].stem(root))
    return "advbench_completions" if lacks_it else name


def _published_prompts(name: str, root: Path | None) -> tuple[list[Prompt], Path, str]:
    """All prompts of the benchmark that is read for `name`, the path of their table, and what to do if the table is wrong.

    Without a data folder, a folder for each commit in the hub's cache serves as one.
    """
    name = read_for(name, root)
    entry = find(name)
    if root is not None:
        where, mend = entry.stem(root), "fetch it again"
    else:
        from huggingface_hub import constants

        cache = Path(constants.HF_HOME) / "curricula" / (entry.hub_revision or "newest")
        where, mend = entry.stem(cache), f"remove {entry.stem(cache)}, so that it is fetched again"
        try:
            for download in benchmark_downloads(name, cache):
                fetch(download)
        except UserError as error:
            # The error keeps its class, which decides the exit code: a hub that is down can answer the next start.
            raise type(error)(f"{error}, or put {entry.file} into a folder and name it in CURRICULA_DATA") from None
    require_flat(where)
    prompts, left_out = [], published().left_out.get(name, ())
    for row, parts in _parts(Table.open(where), entry.columns, ("text", "behavior"), "", f"correct the row, or {mend}"):
        if entry.keep(row) and request_hash(f"{parts['context']} {parts['text']}") not in left_out:
            prompt = Prompt(id=parts["id"], benchmark=name, **entry.make(parts))
            prompts.append(msgspec.structs.replace(prompt, cluster=cluster_of(prompt.behavior)))
    if not prompts:
        raise UserError(f"{where}: holds no prompt for benchmark {name}; {mend}")
    return unique_prompts(prompts, str(where), mend), where, mend


def _parts(
    table: Table, columns: Mapping[str, Sequence[str]], needed: Container[str], key: str, mend: str
) -> Iterator[tuple[Row, dict[str, str]]]:
    """Each row of a table with the text of each part of its prompt.

    A part comes from the first of its `columns` that has a value. Without a value it is "", or for the id, the row's number.
    Raises UserError if a part in `needed` is blank. `key` is the table's key in the study.
    """
    for number, row in enumerate(table.rows()):
        place, parts = table.place(number, key), dict.fromkeys(PARTS, "")
        for part, names in columns.items():
            parts[part] = next((text_of(row[name], name, place) for name in names if row.get(name) is not None), "")
            if part in needed and not parts[part].strip():
                filled = sorted(name for name, value in row.items() if value not in (None, ""))
                raise UserError(f"{place} has nothing in column {' or '.join(map(repr, names))}, only in {filled}; {mend}")
        yield row, {**parts, "id": parts["id"] or str(number)}


def unique_prompts(prompts: list[Prompt], where: str, mend: str) -> list[Prompt]:
    """`prompts`. Raises UserError if two of them have the same id."""
    repeated, count = Counter(prompt.id for prompt in prompts).most_common(1)[0]
    if count > 1:
        raise UserError(f"{where}: {count} prompts have the id {repeated!r}; {mend}")
    return prompts


def find(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise UsageError(f"benchmark {name!r} is not known; choose from {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def benchmark_downloads(name: str, root: Path) -> list[Download]:
    """One download for each configuration on the hub, in order, into a folder next to the publishers' own file."""
    entry = find(name)
    out = entry.stem(root)
    # If a dataset of the registry has the same place, both need the same columns of it.
    columns = {download.out: download.columns for other in DATASETS for download in downloads_of(other, root)}
    several = len(entry.hub_configs) > 1
    return [
        Download(
            hub=entry.hub,
            config=config,
            split=entry.hub_split,
            revision=entry.hub_revision,
            columns=columns.get(out, ()),
            out=out,
            licence=entry.licence,
            # Copyright rows are marked by the configuration's name here, and by a column in the publishers' file.
            constants={"tags": COPYRIGHT_TAG} if config == "copyright" else {},
            prefix=f"{number}-{config}-" if several else "",
        )
        for number, config in enumerate(entry.hub_configs)
    ]


def text_of(value: Any, name: str, where: Place) -> str:
    """A value of the column `name` as text. Raises UserError if it is not text, too long for a prompt, or not UTF-8."""
    if not isinstance(value, (str, int, float)):
        raise UserError(f"{where}: column {name!r} holds a {type(value).__name__} instead of text; correct the row")
    text = str(value)
    if len(text) > LONGEST_PROMPT:
        raise UserError(
            f"{where}: column {name!r} holds {len(text):,} characters, but prompts have at most {LONGEST_PROMPT:,}; is "
            "this the right file?"
        )
    if not is_utf8(text):
        raise UserError(f"{where}: column {name!r} is not UTF-8; save the file as UTF-8")
    return text


def own_prompts(name: str, declared: PromptSet, root: Path | None) -> list[Prompt]:
    """The prompts of a set that a study declares, in file order."""
    where = f"evaluation.prompts.{name}"
    if root is None and declared.hub is not None:
        raise UserError(f"{where}: {declared.place} must first be fetched into a data folder; set CURRICULA_DATA to it")
    table = declared.open(root or Path(), where)
    declared.look(root or Path(), where)
    columns = {"text": (declared.column,)}
    columns |= {part: (column,) for part in PARTS if (column := getattr(declared, part, None))}
    prompts = []
    for _, parts in _parts(table, columns, ("text", "target"), where, "correct or remove the row"):
        text, context = parts["text"].strip(), parts["context"]
        behavior = parts["behavior"] or text
        prompts.append(
            Prompt(
                id=parts["id"],
                benchmark=name,
                text=f"{context}\n\n---\n\n{text}" if context else text,  # as HarmBench's pipeline joins them
                behavior=behavior,
                context=context,
                category=parts["category"],
                cluster=f"{name}: {parts['cluster']}" if parts["cluster"] else cluster_of(behavior),
                target=parts["target"].strip(),  # as lm_eval strips what the model says
            )
        )
    return unique_prompts(prompts, f"{where}: {declared.place}", "correct column id")
