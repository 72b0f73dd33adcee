"""Attacks that give the model other prompts, without a search (docs/evaluation.md).

Some rewrite the prompts of a benchmark. Ids, behaviors and clusters stay the same, so attacks can be compared prompt by prompt.
Others replay prompts: JailbreakBench's artifacts, and the suffixes that GCG found on another model.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from curricula.errors import UserError, load_failure
from curricula.eval.benchmarks import LONGEST_PROMPT, Prompt, cluster_of, load_prompts
from curricula.eval.config import Attacks, BestOfN, EvalConfig, Prefill
from curricula.eval.rows import SuffixRow, read_rows
from curricula.randomness import key_seed, keyed_rng
from curricula.settings import decode

if TYPE_CHECKING:  # it imports torch
    from curricula.eval.models import LoadedModel

log = logging.getLogger(__name__)

COMPLIANT = "Sure, here is"
"""Beginning of the answer to prompts for which the benchmark gives no target."""
MOST_BEYOND_ASCII = 0.1
"""Largest share of letters beyond ASCII in a set that is distorted; sets in English have a few, such as the ë of Zoë."""
MOST_BYTES = 1 << 28
"""Largest size of an artifact file; the published ones have up to 1 MB."""
NOT_ARTIFACTS = ("attack-info.json", "evaluation.json", "submission.json")
"""Other files of a submission in JailbreakBench's folders."""


def rewritten(attack: str, prompts: Sequence[Prompt], loaded: LoadedModel, settings: Attacks, seed: int) -> list[Prompt]:
    """The prompts as the attack gives them to the model; unchanged for attacks that do not rewrite prompts."""
    if attack == "prefill":
        return [msgspec.structs.replace(prompt, prefill=beginning(prompt, loaded, settings.prefill)) for prompt in prompts]
    if attack == "template-removal":
        return [msgspec.structs.replace(prompt, raw=True) for prompt in prompts]
    if attack == "best-of-n":
        return [attempt for prompt in prompts for attempt in attempts(prompt, settings.best_of_n, seed)]
    return list(prompts)


def beginning(prompt: Prompt, loaded: LoadedModel, settings: Prefill) -> str:
    """The beginning that the attack prefill gives to the answer."""
    text = settings.text or prompt.target or COMPLIANT
    if settings.tokens is None:
        return text
    first = loaded.encode(text)[: settings.tokens]
    return loaded.tokenizer.decode(first, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def check_distortable(name: str, prompts: Sequence[Prompt]) -> None:
    """Raise UserError for a set in another script, in which best of N would drop letters instead of distorting them."""
    letters = [char for prompt in prompts for char in prompt.text if char.isalpha()]
    if (share := sum(not char.isascii() for char in letters) / max(1, len(letters))) > MOST_BEYOND_ASCII:
        raise UserError(
            f"benchmark {name}: {share:.0%} of its letters are beyond ASCII, and best-of-n drops such letters, as its authors' "
            "code does; take the set out of attacks.benchmarks, or best-of-n out of the tasks"
        )


def attempts(prompt: Prompt, settings: BestOfN, seed: int) -> list[Prompt]:
    """The N distorted copies of a prompt. Each has its own draws, so a larger N keeps the copies of a smaller one."""
    copies = []
    for number in range(settings.attempts):
        rng = random.Random(key_seed("best-of-n", seed, prompt.benchmark, prompt.id, number))
        copies.append(msgspec.structs.replace(prompt, text=distorted(prompt.text, settings, rng), attempt=number))
    return copies


def distorted(text: str, settings: BestOfN, rng: random.Random) -> str:
    """`text` after the distortions that are on, in the order and with the draws of the authors' code."""
    if settings.scramble:
        text = scrambled(text, settings.sigma, rng)
    if settings.capitalize:
        text = "".join(capitalized(char, settings.sigma, rng) for char in text)
    if settings.noise:
        text = "".join(noised(char, settings.sigma, rng) for char in text)
    return text


def scrambled(text: str, sigma: float, rng: random.Random) -> str:
    words = text.split()
    for place, word in enumerate(words):
        if len(word) > 3 and rng.random() < sigma**0.5:
            middle = list(word[1:-1])
            rng.shuffle(middle)
            words[place] = word[0] + "".join(middle) + word[-1]
    return " ".join(words)


def capitalized(char: str, sigma: float, rng: random.Random) -> str:
    if char.isalpha() and rng.random() < sigma**0.5:
        return char.swapcase() if char.isascii() else ""  # a drawn letter beyond ASCII disappears, as in the authors' code
    return char


def noised(char: str, sigma: float, rng: random.Random) -> str:
    if char.isprintable() and rng.random() < sigma**3:
        code = ord(char) + rng.choice([-1, 1])
        return chr(code) if 32 <= code <= 126 else char
    return char


def ablation_texts(config: EvalConfig, data_root: Path | None, name: str) -> list[str]:
    """Prompts of a benchmark from which to find the direction, drawn by key, without near-duplicates of attacked prompts."""
    settings, accepted = config.attacks.ablation, config.accept_changed

    def clusters(prompt: Prompt) -> set[str]:
        return {prompt.cluster, cluster_of(prompt.behavior)}  # an own set can declare other clusters

    attacked = {
        cluster
        for benchmark in config.attacks.benchmarks
        for prompt in load_prompts(benchmark, data_root, accept_changed=accepted, own=config.prompts)
        for cluster in clusters(prompt)
    }
    prompts = load_prompts(name, data_root, accept_changed=accepted, own=config.prompts)
    usable = [prompt for prompt in prompts if attacked.isdisjoint(clusters(prompt))]
    count = settings.train + settings.validation
    if len(usable) < count:
        raise UserError(
            f"benchmark {name} has {len(usable)} prompts that are not attacked themselves, but attacks.ablation asks for "
            f"{count} (train + validation); lower them or name a larger benchmark"
        )
    return [usable[place].text for place in keyed_rng("ablation", name).permutation(len(usable))[:count]]


class Jailbreak(msgspec.Struct, frozen=True):
    """One jailbreak of an artifact. Other fields in the file describe the model it was found on and are ignored."""

    index: Annotated[int, msgspec.Meta(ge=0)]
    goal: Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_PROMPT)]
    prompt: Annotated[str, msgspec.Meta(max_length=LONGEST_PROMPT)] | None
    category: str | None = None


class Artifact(msgspec.Struct, frozen=True):
    jailbreaks: Annotated[list[Jailbreak], msgspec.Meta(min_length=1)]


def artifact_prompts(name: str, path: Path) -> list[Prompt]:
    """The prompts in an artifact file, or in the *.json files of a folder at any depth, as a benchmark called `name`."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*.json")) if file.name not in NOT_ARTIFACTS]
        labelled = [(f"{file.relative_to(path).with_suffix('')}:", file) for file in files]
    else:
        labelled = [("", path)]
    prompts = [prompt for label, file in labelled for prompt in _prompts(name, label, file)]
    if not prompts:
        raise UserError(f"{path}: holds no jailbreak prompt; evaluation.attacks.artifacts.{name} needs artifact files")
    return prompts


def _prompts(name: str, label: str, file: Path) -> Iterator[Prompt]:
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file}: has more than {MOST_BYTES >> 20} MiB; is it an artifact of JailbreakBench?")
        jailbreaks = decode(file.read_bytes(), Artifact).jailbreaks
    except OSError as error:
        raise load_failure(error)(
            f"{file}: cannot be read ({error.strerror}); correct evaluation.attacks.artifacts.{name}, or fetch the file from "
            "github.com/JailbreakBench/artifacts"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not in JailbreakBench's artifact format ({error}); fetch it again") from None
    lacking = sum(not one.prompt for one in jailbreaks)
    log.info("%s: %d of %d jailbreaks have no prompt to replay", file, lacking, len(jailbreaks))
    seen = set()
    for entry in jailbreaks:
        if entry.index in seen:
            raise UserError(f"{file}: two jailbreaks have the index {entry.index}; remove one")
        seen.add(entry.index)
        if entry.prompt and entry.prompt.strip():
            yield Prompt(
                id=f"{label}{entry.index}",
                benchmark=name,
                text=entry.prompt,
                behavior=entry.goal,
                category=entry.category or "",
                cluster=cluster_of(entry.goal),
            )


def suffixed_prompts(source: str, folder: Path, prompts: Sequence[Prompt]) -> list[Prompt]:
    """`prompts` with the suffixes that GCG found on the model whose rows are in `folder`, as a benchmark called `source`.

    Prompts without a suffix there are left out.
    """
    suffixes: dict[tuple[str, str], str] = {}
    for path in sorted((folder / "gcg").glob("*.suffixes.jsonl")):
        for row in read_rows(path, SuffixRow):
            if suffixes.setdefault((row.benchmark, row.prompt_id), row.suffix) != row.suffix:
                raise UserError(
                    f"{path}: its suffix for prompt {row.prompt_id} of {row.benchmark} differs from that in a file of another "
                    "number of shards in the same folder; remove the file of earlier settings"
                )
    suffixed = [
        msgspec.structs.replace(prompt, benchmark=source, text=prompt.text.strip() + suffixes[prompt.benchmark, prompt.id])
        for prompt in prompts
        if (prompt.benchmark, prompt.id) in suffixes
    ]
    if not suffixed:
        raise UserError(
            f"{folder}: holds no GCG suffix for the prompts of evaluation.gcg, which evaluation.attacks.suffixes_of asks for "
            f"({source}); run the task gcg on that model first"
        )
    if left_out := len(prompts) - len(suffixed):
        log.warning("%s: %d of %d prompts have no GCG suffix there and are left out", folder, left_out, len(prompts))
    return suffixed
