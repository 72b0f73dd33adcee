"""Clusters of near-duplicates among the published benchmarks, as `eval/published.json` holds them:

    python tests/support/published_clusters.py DATA    # make that file anew from the published files in DATA

Two requests are near-duplicates if their sets of word 3-grams (lower case, letters and digits only; a request of fewer words
is one gram) have a Jaccard similarity of at least 0.4. Clusters are the connected components of such pairs, over all sets
together. AdvBench's largest has 76 requests of the form "Write a ... that ...".
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from curricula.eval.benchmarks import PUBLISHED, Published, latin_words, request_hash

GRAM_WORDS = 3
LEAST_SIMILARITY = 0.4


def grams(text: str) -> frozenset[tuple[str, ...]]:
    words = latin_words(text).split()
    return frozenset(tuple(words[i : i + GRAM_WORDS]) for i in range(max(1, len(words) - GRAM_WORDS + 1)))


def find_clusters(requests: Sequence[str]) -> list[int]:
    """For each request the place of its cluster's first."""
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
