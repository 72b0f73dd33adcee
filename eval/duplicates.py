"""Near-duplicates among the public benchmarks: which prompts ask for the same thing (docs/decoding.md).

Their clusters are in `published.json`, as hashes, so that a prompt's cluster does not depend on which benchmarks a run reads,
or from where. `tests/support/published_clusters.py` makes that file.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

import msgspec

from curricula.settings import decode

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
