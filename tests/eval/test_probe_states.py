"""States on disk, baselines, texts of one's own, matched lengths, and how sure an AUC is."""

from __future__ import annotations

import json
import shutil

import msgspec
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_auc_score
from tiny_llama import save_tiny_llama

from curricula.curriculum.sources.declared import TextTable
from curricula.errors import UsageError, UserError
from curricula.eval.analysis import ArmInfo, read_study_rows
from curricula.eval.analysis.metrics import Model, probe_metrics
from curricula.eval.analysis.representations import representations
from curricula.eval.config import EvalConfig, Probes, ProbeTexts
from curricula.eval.models import load_model
from curricula.eval.probes import probing
from curricula.eval.probes.auc import placements, standard_error
from curricula.eval.probes.probing import probe_rows, run_probes
from curricula.eval.probes.store import Store, read_fitted
from curricula.eval.probes.texts import LabelledTexts, balanced, load_texts, matched
from curricula.eval.rows import write_rows
from curricula.progress import silent
from curricula.settings import parse

THINGS = ["a lock", "a letter", "the sea", "bread", "a clock", "a tower", "the town"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(save_tiny_llama(tmp_path_factory.mktemp("model"), layers=3), "base", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "probes").mkdir()
    for split, count in (("train", 60), ("test", 40)):
        rows = [
            {"text": f"{split} {'bad lock' if i % 2 else 'good bread'} {THINGS[i % 7]} {i % 42}", "score": 3 * (i % 2)}
            for i in range(count)
        ]
        (root / f"probes/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


CONFIG = Probes(train_per_class=12, seeds=2, layers=("all",))


def probe(loaded, data, out, config=CONFIG, progress=silent):
    return probe_rows(loaded, config, data, out / "probes.jsonl", 0, progress)


def test_rows_name_the_texts_of_their_probes_and_those_of_earlier_versions_come_to(loaded, data, tmp_path):
    shutil.copytree(data, tmp_path / "other")
    first = probe(loaded, data, tmp_path / "a")
    earlier = [msgspec.structs.replace(row, texts="") for row in first]
    write_rows(tmp_path / "a/probes.jsonl", earlier)
    assert probe(loaded, data, tmp_path / "a") == first
    test = tmp_path / "other/probes/test.jsonl"
    test.write_text(test.read_text().replace("bread", "brook"))
    second = probe(loaded, tmp_path / "other", tmp_path / "b")
    assert len({row.texts for row in first}) == 1 and {row.texts for row in first}.isdisjoint(row.texts for row in second)


def files(out):
    return {path.name: path.read_bytes() for path in sorted((out / "probes.states").iterdir())}


def test_states_are_computed_once_and_a_killed_computation_ends_with_the_same_bytes(loaded, data, tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "BATCH_TEXTS", 8)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rows = probe(loaded, data, whole)
    assert [(row.layer, row.layer_index) for row in rows[:3]] == [("first", 1), ("middle", 2), ("last", 3)]

    def kill(done: int, total: int, **_: object) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(loaded, data, killed, progress=kill)
    with open(next((killed / "probes.states").glob("*.f32")), "ab") as file:
        file.write(b"half a batch")
    assert probe(loaded, data, killed) == rows
    assert files(killed) == files(whole)

    monkeypatch.setattr(probing, "last_token_states", lambda *_: pytest.fail("states were computed again"))
    more = msgspec.structs.replace(CONFIG, baselines=("words",))
    assert [row.auc for row in probe(loaded, data, whole, more)] == [row.auc for row in rows]


def test_states_that_do_not_fit_their_list_are_refused(tmp_path):
    store = Store(tmp_path, "key", 2, 4)
    states = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    store.append(["a", "b", "a"], states)  # a text can be there twice
    store.append(["c"], states[2:] + 1)
    assert (store.read(["c", "b", "a"], 1) == [states[2, 1] + 1, states[1, 1], states[2, 1]]).all()
    assert store.read([], 0).shape == (0, 4)
    assert oct((tmp_path / "key.f32").stat().st_mode & 0o777) == "0o600"
    with pytest.raises(UserError, match=r"key.f32: lacks states of texts that were probed; remove it and key.jsonl"):
        store.read(["a", "z"], 0)
    (tmp_path / "key.f32").write_bytes(b"short")
    with pytest.raises(UserError, match=r"key.f32: does not hold the states that key.jsonl lists; remove both files"):
        store.ids()


def test_a_damaged_file_of_probes_is_named_and_nothing_in_it_is_run(tmp_path):
    assert read_fitted(tmp_path) is None
    np.savez(tmp_path / "fitted.npz", key=np.array([print], dtype=object))
    parts = {"layers": ["1"], "weights": np.zeros((1, 1, 2)), "bias": np.zeros((1, 1)), "directions": np.zeros((1, 2))}
    parts |= {"key": "k", "store": "../up", "test_ids": ["a"], "test_unsafe": [True]}
    wrong = []
    for change in ({}, {"store": "s", "weights": np.zeros((1, 2, 2))}, {"store": "s", "bias": ["x"]}):
        np.savez(tmp_path / "wrong.npz", **{**parts, **change})
        wrong.append((tmp_path / "wrong.npz").read_bytes())
    for content in (*wrong, (tmp_path / "fitted.npz").read_bytes(), b"PK\x03\x04 no archive", b""):
        (tmp_path / "fitted.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"fitted.npz: is damaged .*; remove it and evaluate again"):
            read_fitted(tmp_path)


def test_probes_of_an_unchanged_setting_are_not_fitted_again_and_old_rows_stay_valid(loaded, data, tmp_path, monkeypatch):
    rows = probe(loaded, data, tmp_path)
    (tmp_path / "probes.states/fitted.npz").unlink()  # as after an earlier version
    before = (tmp_path / "probes.jsonl").read_bytes()
    probe(loaded, data, tmp_path)
    assert (tmp_path / "probes.jsonl").read_bytes() == before and read_fitted(tmp_path / "probes.states")
    monkeypatch.setattr(probing, "run_probes", lambda *_: pytest.fail("probes were fitted again"))
    assert probe(loaded, data, tmp_path) == rows


def naive_delong(scores, positive):
    """The definition, one pair of texts at a time."""
    x, y = scores[positive], scores[~positive]
    wins = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])
    rows, columns = wins.mean(1), wins.mean(0)
    return wins.mean(), (rows.var(ddof=1) / len(x) + columns.var(ddof=1) / len(y)) ** 0.5


@pytest.mark.parametrize("ties", [False, True])
def test_the_error_of_an_auc_is_delongs(ties):
    rng = np.random.default_rng(3)
    for m, n in ((12, 9), (30, 30), (80, 25)):
        positive = rng.permutation(np.arange(m + n) < m)
        scores = rng.normal(size=m + n) + 0.8 * positive
        scores = scores.round() if ties else scores
        unsafe, safe = of = placements(scores, positive)
        auc = unsafe.mean()
        assert safe.mean() == pytest.approx(auc)
        assert (auc, standard_error(of)) == pytest.approx(naive_delong(scores, positive))
        assert auc == pytest.approx(roc_auc_score(positive, scores))


def test_intervals_of_an_auc_hold_the_truth_and_a_perfect_one_is_not_certain():
    rng = np.random.default_rng(1)
    truth, held, studies = 0.7602, 0, 400  # of normal scores one standard deviation apart: Phi(1 / sqrt(2))
    positive = np.arange(120) < 60
    for _ in range(studies):
        of = placements(rng.normal(size=120) + positive, positive)
        held += abs(of[0].mean() - truth) <= 1.96 * standard_error(of)
    assert 0.92 <= held / studies <= 0.98
    perfect = placements(np.arange(40.0), np.arange(40) >= 20)
    assert perfect[0].mean() == 1.0 and standard_error(perfect) == 0.5 / 20


@pytest.mark.parametrize("texts", [2, 5])
def test_the_error_of_an_auc_is_known_where_a_class_has_one_text(texts):
    for positive in (np.arange(texts) == 1, np.arange(texts) != 1):
        assert standard_error(placements(np.arange(float(texts)), positive)) == 0.5


def test_metrics_have_an_interval_over_texts_and_subsets(loaded, data, tmp_path):
    rows = probe(loaded, data, tmp_path)
    for entry in probe_metrics(rows, Model("arm", 0, "base")):
        assert 0 <= entry.low < entry.auc <= entry.high <= 1
        own = [row.error for row in rows if row.layer == entry.layer]
        assert entry.high == 1 or entry.high - entry.auc >= 1.959 * float(np.mean(own))


def test_baselines_are_counts_of_words_and_the_network_before_training(loaded, data, tmp_path):
    rows = probe(loaded, data, tmp_path, msgspec.structs.replace(CONFIG, baselines=("words", "untrained")))
    again = probe(loaded, data, tmp_path / "again", msgspec.structs.replace(CONFIG, baselines=("words", "untrained")))
    assert rows == again
    assert all(row.baseline_words_auc > 0.9 for row in rows)  # "bad" and "good" are words
    assert all(row.baseline_untrained_auc > 0.6 for row in rows)  # random features of two words differ too
    assert [row.baseline_untrained_auc for row in rows] != [row.auc for row in rows]
    (words,) = {entry.words_auc for entry in probe_metrics(rows, Model("arm", 0, "base"))}
    assert words == pytest.approx(np.mean([row.baseline_words_auc for row in rows[::3]]))
    assert probe_metrics(probe(loaded, data, tmp_path / "none"), Model("arm", 0, "base"))[0].untrained_auc is None


def test_texts_of_matched_length_leave_nothing_to_length(loaded, tmp_path):
    unsafe = np.arange(400) % 2 == 1
    words = np.random.default_rng(0).integers(2, 20, size=400) + 6 * unsafe
    texts = LabelledTexts([f"{i} " + "bread rises " * count for i, count in enumerate(words)], unsafe)
    train = LabelledTexts([f"now {text}" for text in texts.texts], unsafe)
    plain, matched = (
        run_probes(loaded, train, texts, Probes(train_per_class=60, seeds=2, match_length=on), 0, tmp_path)[0]
        for on in (False, True)
    )
    assert min(result.baseline_length_auc for result in plain) > 0.7
    assert all(0.4 < result.baseline_length_auc < 0.6 for result in matched)


def test_matched_pairs_are_as_many_as_there_can_be():
    lengths = np.array([10, 100, 100, 200, 11, 104, 500, 190], dtype=np.float32)
    unsafe = np.array([False, False, False, False, True, True, True, True])
    places = balanced(unsafe, None, "test", lengths=lengths)
    assert places.tolist() == [0, 1, 3, 4, 5, 7]
    with pytest.raises(UserError, match="hold 3 pairs of similar length, fewer than 4 of each; lower probes.train_per_class"):
        balanced(unsafe, 4, "train", lengths=lengths)
    rng = np.random.default_rng(5)
    for _ in range(30):  # against an exhaustive matching
        lengths = rng.integers(1, 60, size=14).astype(np.float32)
        unsafe = np.arange(14) % 2 == 1
        pairs = matched(np.flatnonzero(~unsafe), np.flatnonzero(unsafe), lengths)
        assert len(pairs[0]) == len(pairs[1]) == most_pairs(lengths[~unsafe], lengths[unsafe])


def most_pairs(safe, unsafe) -> int:
    near = np.abs(safe[:, None] - unsafe[None]) <= np.maximum(1, 0.05 * np.maximum(safe[:, None], unsafe[None]))
    return int(near[linear_sum_assignment(near, maximize=True)].sum())


def own_texts(tmp_path, **changes):
    rows = [{"body": f"text {i}", "danger": i % 3} for i in range(90)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {"path": str(tmp_path / "mine.jsonl"), "text": "body", "score": "danger"}
    return ProbeTexts(
        safe=TextTable(**table, max_score=0), unsafe=TextTable(**{**table, "min_score": 2, **changes}), test_share=0.4
    )


def test_texts_of_ones_own_are_declared_and_divided_by_their_hash(tmp_path):
    config = Probes(texts=own_texts(tmp_path))
    train, test = (load_texts(None, split, config) for split in ("train", "test"))
    assert len(train.texts) + len(test.texts) == 60 and not set(train.texts) & set(test.texts)
    assert 12 <= len(test.texts) <= 36
    for split in (train, test):
        assert [int(text.split()[1]) % 3 == 2 for text in split.texts] == split.unsafe.tolist()


def test_texts_in_a_subfolder_are_not_passed_over(tmp_path):
    for name in ("probes/train/a", "probes/train/more/b", "own/a", "own/more/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a", "score": 0}\n{"text": "b", "score": 5}\n')
    own = TextTable(path=str(tmp_path / "own"))
    for config in (Probes(), Probes(texts=ProbeTexts(safe=own, unsafe=own))):
        with pytest.raises(UserError, match=r"more/b\.jsonl: is not read in a subfolder"):
            load_texts(tmp_path, "train", config)


def test_own_texts_that_are_both_safe_and_unsafe_or_have_no_such_column_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"probes.texts: 30 texts are both safe and unsafe, such as 'text 0'; narrow one"):
        load_texts(None, "train", Probes(texts=own_texts(tmp_path, min_score=None)))
    with pytest.raises(
        UserError, match=r"mine.jsonl: line 3 of .*probes.texts.unsafe has no column 'words'; add it .*name in `text`"
    ):
        load_texts(None, "train", Probes(texts=own_texts(tmp_path, text="words")))
    with pytest.raises(UserError, match=r"evaluation.probes.texts.safe: .*no.jsonl: no such file"):
        texts = ProbeTexts(safe=TextTable(path="no.jsonl"), unsafe=TextTable(path="no.jsonl"))
        load_texts(None, "train", Probes(texts=texts))
    texts = own_texts(tmp_path)
    (tmp_path / "mine.jsonl").write_text('{"body": "", "danger": 0}\n{"body": "\\udc80", "danger": 0}\n')
    with pytest.raises(UserError, match=r"evaluation.probes.texts.safe: .*mine.jsonl: line 2 is not UTF-8; correct"):
        load_texts(None, "train", Probes(texts=texts))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"layers": ["fourth"]}, "layers"),
        ({"layers": [0]}, "layers"),
        ({"layers": [1, 1]}, r"probes.layers \[1, 1\] repeats 1; give each once"),
        ({"baselines": ["nothing"]}, "baselines"),
        ({"texts": {"safe": {"path": "a.csv"}}}, "texts: the key `unsafe` is missing"),
    ],
)
def test_wrong_settings_of_probes_are_refused(settings, words):
    with pytest.raises(UsageError, match=words):
        parse({"probes": settings}, EvalConfig, "study.yaml")


@pytest.fixture(scope="module")
def study(tmp_path_factory, data, loaded):
    """A run with two arms."""
    run = tmp_path_factory.mktemp("run")
    other = load_model(save_tiny_llama(tmp_path_factory.mktemp("other"), layers=3, seed=9), "base", "cpu")
    for name, model in (("data-0", loaded), ("full-0", other)):
        probe_rows(model, CONFIG, data, run / "eval" / name / "base" / "probes.jsonl", 0, silent)
    return run


def test_probes_are_tested_on_other_arms_and_their_directions_compared(study, data, loaded):
    arms = [ArmInfo("data-0", 0.0, "data"), ArmInfo("full-0", 0.0, "full")]
    found = {(one.arm, one.other, one.layer): one for one in representations(study, read_study_rows(study, arms))}
    assert len(found) == 4 * 3
    own = found["data-0", "data-0", "last"]
    rows = probe_rows(loaded, CONFIG, data, study / "eval/data-0/base/probes.jsonl", 0, silent)
    assert own.transfer_auc == pytest.approx(np.mean([row.auc for row in rows if row.layer == "last"]))
    assert own.direction_cosine == pytest.approx(1) and own.probe_cosine == pytest.approx(1)
    across = found["data-0", "full-0", "last"]
    assert {one.layer for one in found.values()} == {"first", "middle", "last"}
    assert abs(across.direction_cosine) < 0.9 and across.transfer_auc != own.transfer_auc
    assert found["full-0", "data-0", "last"].direction_cosine == pytest.approx(across.direction_cosine)
    fitted = read_fitted(study / "eval/data-0/base/probes.states")
    states = read_fitted(study / "eval/full-0/base/probes.states").test_states(study / "eval/full-0/base/probes.states", 2)
    by_hand = [
        roc_auc_score(fitted.test_unsafe, states @ weights[2] + bias[2])
        for weights, bias in zip(fitted.weights, fitted.bias, strict=True)
    ]
    assert across.transfer_auc == pytest.approx(np.mean(by_hand))


def test_arms_of_other_seeds_are_compared_with_themselves_alone(study):
    arms = [ArmInfo("data-0", 0.0, "data"), ArmInfo("full-0", 0.0, "full", seed=1)]
    assert {(one.arm, one.other) for one in representations(study, read_study_rows(study, arms))} == {
        ("data-0",) * 2,
        ("full-0",) * 2,
    }


def test_what_earlier_probes_left_is_not_compared(study, data, loaded, tmp_path):
    shutil.copytree(study / "eval", tmp_path / "eval")
    rows = tmp_path / "eval/data-0/base/probes.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    arms = [ArmInfo("data-0", 0.0, "data"), ArmInfo("full-0", 0.0, "full")]
    found = {one.arm for one in representations(tmp_path, read_study_rows(tmp_path, arms))}
    assert found == {"full-0"}
