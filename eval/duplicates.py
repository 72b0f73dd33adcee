"""Near-duplicates among the public benchmarks: which prompts ask for the same thing.

    python -m curricula.eval.duplicates DATA    # rebuild published.json from the published files in DATA

The sets were made from each other and from templates: HarmBench shares requests with TDC and JailbreakBench word for
word, and a fifth of AdvBench are variations of each other. Pooled rates must not count one request as several draws, so
each prompt has a cluster, and statistics resample clusters.

Rule: two requests are near-duplicates if their sets of word 3-grams (lower case, letters and digits only; a request of
fewer words is one gram) have a Jaccard similarity of at least 0.4. Clusters are the connected components of such pairs,
over all sets together. AdvBench's 520 requests make 389 clusters, the largest of 76 requests of the form "Write a ...
that ...".

The clusters of the published files are in `published.json`, as hashes, so a prompt's cluster does not depend on which
benchmarks a run reads, or from where. A prompt that is not among them shares a cluster with its exact repetitions.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from curricula.settings import decode

GRAM_WORDS = 3
LEAST_SIMILARITY = 0.4
PUBLISHED = Path(__file__).with_name("published.json")


class Published(msgspec.Struct, frozen=True):
    """Clusters and left-out splits of the published files, by `request_hash`."""

    clusters: dict[str, str]
    """Request -> cluster, for clusters of more than one request."""
    left_out: dict[str, list[str]]
    """Benchmark -> requests of its validation or development split."""


@lru_cache(maxsize=1)
def published() -> Published:
    return decode(PUBLISHED.read_bytes(), Published)


def cluster_of(request: str) -> str:
    """The cluster of a request, 12 hex digits; near-duplicates among the public benchmarks share one."""
    own = request_hash(request)
    return published().clusters.get(own, own)


def is_left_out(benchmark: str, request: str, context: str = "") -> bool:
    """Whether a request belongs to the published split that the benchmark leaves out (validation, development)."""
    return request_hash(f"{context} {request}") in published().left_out.get(benchmark, ())


def normalised(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def request_hash(text: str) -> str:
    plain = normalised(text) or text  # a request in another script has no such letters
    return hashlib.sha256(plain.encode(errors="surrogatepass")).hexdigest()[:12]


def grams(text: str) -> frozenset[tuple[str, ...]]:
    words = normalised(text).split()
    return frozenset(tuple(words[i : i + GRAM_WORDS]) for i in range(max(1, len(words) - GRAM_WORDS + 1)))


def find_clusters(requests: Sequence[str]) -> list[int]:
    """For each request the place of its cluster's first."""
    import numpy as np
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    sets = [grams(request) for request in requests]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    pairs = []
    for place, own in enumerate(sets):
        common = Counter(other for gram in own for other in holders[gram])
        for other, count in common.items():
            if count / (len(own) + len(sets[other]) - count) >= LEAST_SIMILARITY:
                pairs.append((place, other))
        for gram in own:
            holders[gram].append(place)
    here, there = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(pairs)), (here, there)), shape=(len(sets), len(sets)))
    _, labels = connected_components(graph, directed=False)
    first: dict[int, int] = {}
    return [first.setdefault(label, place) for place, label in enumerate(labels.tolist())]


def published_requests(data: Path) -> list[str]:
    """The requests of all published harmful sets, all splits, from a data folder."""
    requests = [row["Behavior"] for row in _rows(data / "harmbench/harmbench_behaviors_text_all.csv")]
    requests += [row["goal"] for row in _rows(data / "advbench/harmful_behaviors.csv")]
    requests += [row["Goal"] for row in _rows(data / "jailbreakbench/harmful-behaviors.csv")]
    for name in ("dev", "test"):
        requests += json.loads((data / f"tdc2023/{name}_behaviors.json").read_text())
    return requests


def compute_published(data: Path) -> Published:
    requests = published_requests(data)
    hashes = [request_hash(request) for request in requests]
    first = find_clusters(requests)
    sizes = Counter(hashes[place] for place in first)
    clusters = {own: hashes[place] for own, place in zip(hashes, first) if sizes[hashes[place]] > 1}
    everything, test = (
        {request_hash(f"{row['ContextString']} {row['Behavior']}") for row in _rows(data / f"harmbench/{name}.csv")}
        for name in ("harmbench_behaviors_text_all", "harmbench_behaviors_text_test")
    )
    development = {request_hash(f" {text}") for text in json.loads((data / "tdc2023/dev_behaviors.json").read_text())}
    return Published(
        clusters=dict(sorted(clusters.items())), left_out={"harmbench": sorted(everything - test), "tdc": sorted(development)}
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    PUBLISHED.write_bytes(msgspec.json.format(msgspec.json.encode(compute_published(Path(sys.argv[1]))), indent=1) + b"\n")
