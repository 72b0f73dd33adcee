"""Near-duplicates: the rule on small texts, and the published table against the published files."""

from __future__ import annotations

import os
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from published_clusters import LEAST_SIMILARITY, compute_published, find_clusters, grams, published_requests

from curricula.eval.benchmarks import cluster_of, latin_words, load_prompts, published

REAL = os.environ.get("CURRICULA_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="set CURRICULA_DATA to the folder of public datasets")


def test_requests_that_differ_only_in_case_and_punctuation_are_one():
    assert cluster_of("Write  a letter, please!") == cluster_of("write a letter PLEASE")
    assert cluster_of("Write a letter") != cluster_of("Write a poem")
    assert cluster_of("写一封信") != cluster_of("写一首诗")
    assert grams("Explain it") == {("explain", "it")}


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=12))
@examples(60)
def test_clusters_are_the_connected_components_of_similar_pairs(requests):
    place = list(range(len(requests)))
    for here, there in combinations(range(len(requests)), 2):  # the plain way: every pair, merging labels
        one, other = grams(requests[here]), grams(requests[there])
        if len(one & other) / len(one | other) >= LEAST_SIMILARITY:
            old, new = place[there], place[here]
            place = [min(new, old) if label in (old, new) else label for label in place]
    assert find_clusters(requests) == place


@needs_data
def test_the_published_table_equals_one_computed_from_the_published_files():
    assert compute_published(Path(REAL)) == published()


@needs_data
def test_the_published_sets_overlap_by_the_known_counts():
    """Counts of requests that are equal but for case and punctuation, and of AdvBench's clusters."""
    requests = published_requests(Path(REAL))
    harmbench, advbench, jailbreakbench, development, test = (
        [latin_words(text) for text in requests[start:stop]]
        for start, stop in [(0, 400), (400, 920), (920, 1020), (1020, 1070), (1070, 1120)]
    )
    assert len(set(harmbench)) == 393
    assert len({*harmbench} & {*development}) == 22
    assert len({*harmbench} & {*test}) == 17
    assert len({*harmbench} & {*jailbreakbench}) == 9
    assert len({*jailbreakbench} & {*development}) == 12
    assert len({*jailbreakbench} & {*test}) == 4
    assert len({*jailbreakbench} & {*advbench}) == 11
    assert len(set(find_clusters(advbench))) == 389
    assert len(set(map(cluster_of, requests))) == 856


@needs_data
def test_a_request_has_the_same_cluster_in_every_set():
    sets = {name: load_prompts(name, Path(REAL)) for name in ("harmbench", "advbench", "jailbreakbench", "tdc")}
    shared = {p.cluster for p in sets["advbench"]} & {p.cluster for p in sets["jailbreakbench"]}
    assert len(shared) >= 11
    largest = Counter(p.cluster for p in sets["advbench"]).most_common(1)[0][1]
    assert 70 < largest < 100
    beginnings = load_prompts("advbench_completions", Path(REAL))
    assert [p.cluster for p in beginnings] == [p.cluster for p in sets["advbench"]]
