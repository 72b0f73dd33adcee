"""Linear probes: how well a logistic regression separates safe from unsafe text by the last token's hidden state.

Section 4.3 and appendix B of the paper; docs/evaluation.md says what these leave open.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from curricula.errors import UserError
from curricula.eval.config import Layer, Probes
from curricula.eval.models import LoadedModel
from curricula.eval.probes.auc import placements, standard_error
from curricula.eval.probes.store import FOLDER, Fitted, Store, read_fitted
from curricula.eval.probes.texts import LabelledTexts, balanced, load_texts
from curricula.eval.rows import ProbeRow, append_rows, finished_batches, in_order, row_key
from curricula.progress import Progress, silent
from curricula.randomness import key_seed

log = logging.getLogger(__name__)

VERSION = 1
"""Version of the procedure, part of every row's key."""
KEYED = ("train_per_class", "seeds", "layers", "unsafe_score", "max_tokens")
"""Settings that every key holds. A key holds any other only if it is not the default, so that older keys stay valid."""
BATCH_TEXTS = 32
"""Texts in one forward pass."""
DIGITS = 6
"""Decimals of a text's placement in the rows."""


def probe_rows(
    loaded: LoadedModel, config: Probes, data_root: Path | None, path: Path, seed: int, progress: Progress
) -> list[ProbeRow]:
    """Fit and test all probes, unless `path` already holds their rows; they are written together."""
    train, test = (load_texts(data_root, split, config) for split in ("train", "test"))
    layers = layers_of(config.layers, loaded.layers)
    texts = row_key(train=train.texts, test=test.texts, labels=[train.unsafe.tolist(), test.unsafe.tolist()])
    usual = msgspec.to_builtins(Probes())
    given = {name: value for name, value in msgspec.to_builtins(config).items() if name in KEYED or value != usual[name]}
    # Keys still hold a setting that once limited the test set, so that rows of earlier runs stay valid.
    settings = {**given, "test_per_class": None}
    keys = [
        row_key(
            task="probes",
            model=loaded.content_hash,
            precision=loaded.precision,
            texts=texts,
            version=VERSION,
            settings=settings,
            seed=seed,
            layer=layer,
            draw=draw,
            if_set={"beginning": loaded.beginning},
        )
        for draw in range(config.seeds)
        for layer, _ in layers
    ]
    folder = path.with_name(FOLDER)
    fitted, done = read_fitted(folder), finished_batches(path, ProbeRow, [keys])
    if not done or fitted is None or fitted.key != row_key(probes=keys):
        rows, fitted = run_probes(loaded, train, test, config, seed, folder, progress)
        dataclasses.replace(fitted, key=row_key(probes=keys)).write(folder)
        if not done:
            append_rows(path, [msgspec.structs.replace(row, key=key) for key, row in zip(keys, rows, strict=True)])
    progress(len(keys), len(keys))
    return in_order(path, ProbeRow, [keys], lambda row: msgspec.structs.replace(row, texts=texts))


def layers_of(layers: Sequence[Layer], count: int) -> list[tuple[str, int]]:
    """Name and number of each of `layers` in a model with `count` blocks. Blocks count from 1; the middle of 24 is the 13th."""
    named = {"first": 1, "middle": min(count // 2 + 1, count), "last": count}
    numbers: dict[str, int] = {}
    for layer in layers:
        if layer == "all":
            others = [number for number in range(1, count + 1) if number not in named.values()]
            numbers |= {**named, **{str(number): number for number in others}}
        else:
            numbers[str(layer)] = named.get(str(layer), layer if isinstance(layer, int) else count)
    if wrong := [number for number in numbers.values() if number > count]:
        raise UserError(f"evaluation.probes.layers names layer {wrong[0]}, but the model has {count}; choose a lower one")
    return sorted(numbers.items(), key=lambda layer: layer[1]) if "all" in layers else list(numbers.items())


def run_probes(
    loaded: LoadedModel,
    train: LabelledTexts,
    test: LabelledTexts,
    config: Probes,
    seed: int,
    folder: Path,
    progress: Progress = silent,
) -> tuple[list[ProbeRow], Fitted]:
    """Fit and test a probe for each layer and training subset, all on the same test set. States are stored in `folder`.

    The returned rows and `Fitted` have no keys yet.
    """
    layers = layers_of(config.layers, loaded.layers)
    indices = [index for _, index in layers]
    training, testing, subsets = draw_sets(loaded, train, test, config, seed)
    groups = testing.ids, training.ids
    test_names, train_names = (list(map(text_id, ids)) for ids in groups)
    store = keep_states(loaded, groups, indices, folder, progress)
    before = keep_states(untrained(loaded, seed), groups, indices, folder) if "untrained" in config.baselines else None

    def aucs(features: np.ndarray, test_features: np.ndarray) -> list[float]:
        """Test AUC of a probe for each training subset."""
        return [auc_of(fit(features[of], training.unsafe[of]), test_features, testing.unsafe) for of in subsets]

    not_asked = [None] * len(subsets)
    by_length = aucs(training.lengths[:, None], testing.lengths[:, None])
    by_words = [words_auc(training.at(of), testing) for of in subsets] if "words" in config.baselines else not_asked
    rows: list[list[ProbeRow]] = [[] for _ in subsets]
    weights, biases, directions = [], [], []
    for place, (layer, index) in enumerate(layers):
        states, test_states = (store.read(names, place) for names in (train_names, test_names))
        directions.append(
            states[training.unsafe].mean(0, dtype=np.float64) - states[~training.unsafe].mean(0, dtype=np.float64)
        )
        probes = [fit(states[of], training.unsafe[of]) for of in subsets]
        weights.append([probe.coef_[0] for probe in probes])
        biases.append([probe.intercept_[0] for probe in probes])
        by_untrained = aucs(before.read(train_names, place), before.read(test_names, place)) if before else not_asked
        for draw, (subset, probe) in enumerate(zip(subsets, probes)):
            placed = placements(probe.decision_function(test_states), testing.unsafe)
            rows[draw].append(
                ProbeRow(
                    key="",
                    **loaded.row_fields,
                    layer=layer,
                    layer_index=index,
                    seed=draw,
                    auc=float(placed[0].mean()),
                    error=standard_error(placed),
                    placements=(tuple(placed[0].round(DIGITS).tolist()), tuple(placed[1].round(DIGITS).tolist())),
                    n_train=len(subset),
                    n_test=len(testing.ids),
                    baseline_length_auc=by_length[draw],
                    baseline_words_auc=by_words[draw],
                    baseline_untrained_auc=by_untrained[draw],
                )
            )
    fitted = Fitted(
        key="",
        store=store.key,
        layers=[layer for layer, _ in layers],
        weights=np.array(weights, np.float64).swapaxes(0, 1),
        bias=np.array(biases, np.float64).T,
        directions=np.array(directions),
        test_ids=test_names,
        test_unsafe=testing.unsafe,
    )
    return list(itertools.chain(*rows)), fitted


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """Texts as the model reads them."""

    texts: list[str]
    ids: list[list[int]]
    """Token ids of each text, cut to its first tokens."""
    unsafe: np.ndarray
    """Bool, one per text."""

    @property
    def lengths(self) -> np.ndarray:
        """Length of each text in tokens, float32 [texts]."""
        return np.array([len(ids) for ids in self.ids], dtype=np.float32)

    def at(self, places: Iterable[int]) -> EncodedTexts:
        """The texts at these places, in this order."""
        places = list(places)
        return EncodedTexts([self.texts[i] for i in places], [self.ids[i] for i in places], self.unsafe[places])


def draw_sets(
    loaded: LoadedModel, train: LabelledTexts, test: LabelledTexts, config: Probes, seed: int
) -> tuple[EncodedTexts, EncodedTexts, list[np.ndarray]]:
    """The training texts and the test texts, drawn by key, and the places of each training subset among the training texts."""
    encoded, tested = (EncodedTexts(of.texts, encoded_texts(loaded, of.texts, config), of.unsafe) for of in (train, test))
    usable = without_tested(encoded, tested)
    train_lengths, test_lengths = (of.lengths if config.match_length else None for of in (usable, tested))
    held_out = balanced(tested.unsafe, None, seed, "test", lengths=test_lengths)
    pool, per_class = len(balanced(usable.unsafe, None, lengths=train_lengths)) // 2, config.train_per_class
    if len(usable.ids) < len(encoded.ids):  # the study was begun with a table that had just enough texts
        per_class = min(per_class, pool)
    subsets = [balanced(usable.unsafe, per_class, seed, "train", draw, lengths=train_lengths) for draw in range(config.seeds)]
    if config.seeds > 1 and pool < 2 * per_class:
        log.warning(
            "probes: each of %d training subsets takes %d of %d texts a class, so their spread says little about other texts%s",
            *(config.seeds, per_class, pool, "; all are the same" if pool == per_class else ""),
        )
    needed = np.unique(np.concatenate(subsets))
    return usable.at(needed), tested.at(held_out), [np.searchsorted(needed, subset) for subset in subsets]


def fit(features: Any, labels: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000).fit(features, labels)


def auc_of(probe: Any, features: Any, labels: np.ndarray) -> float:
    return float(placements(probe.decision_function(features), labels)[0].mean())


def words_auc(train: EncodedTexts, test: EncodedTexts) -> float:
    """Test AUC of the same probe on word counts. Words are separated by white space and counted in lower case."""
    from sklearn.feature_extraction.text import CountVectorizer

    counts = CountVectorizer(token_pattern=r"\S+")
    return auc_of(fit(counts.fit_transform(train.texts), train.unsafe), counts.transform(test.texts), test.unsafe)


def encoded_texts(loaded: LoadedModel, texts: Sequence[str], config: Probes) -> list[list[int]]:
    """Token ids of each text, cut to its first tokens; a text without tokens becomes one end mark, or token 0 without one."""
    limit = min(config.max_tokens, loaded.context_length)
    return [loaded.raw_ids(text)[:limit] or [*loaded.end_ids, 0][:1] for text in texts]


def without_tested(train: EncodedTexts, test: EncodedTexts) -> EncodedTexts:
    """The training texts without those that have the token ids of a test text. Different texts can be equal when they are cut
    to their first tokens."""
    tested = set(map(tuple, test.ids))
    kept = [place for place, ids in enumerate(train.ids) if tuple(ids) not in tested]
    if len(kept) < len(train.ids):
        log.warning(
            "probes: %d training texts are left out, since a test text begins with the same tokens (probes.max_tokens)",
            len(train.ids) - len(kept),
        )
    return train.at(kept)


def text_id(ids: Sequence[int]) -> str:
    return row_key(tokens=list(ids))


def keep_states(
    loaded: LoadedModel,
    groups: Sequence[Sequence[Sequence[int]]],
    indices: Sequence[int],
    folder: Path,
    progress: Progress = silent,
) -> Store:
    """The store with the states of these texts, given as token ids. States that it lacks are added; no batch mixes groups."""
    key = row_key(model=loaded.content_hash, precision=loaded.precision, layers=list(indices), version=VERSION)
    store = Store(folder, key, len(indices), loaded.model.config.hidden_size)
    for texts in groups:
        known = set(store.ids())
        missing = [ids for ids in texts if text_id(ids) not in known]
        done = len(texts) - len(missing)
        for places, states in last_token_states(loaded, missing, indices) if missing else ():
            store.append([text_id(missing[i]) for i in places], states)
            done += len(places)
            progress(done, len(texts))
    return store


@torch.inference_mode()
def last_token_states(
    loaded: LoadedModel, texts: Sequence[Sequence[int]], indices: Sequence[int]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Hidden states of the last token of each text (token ids), a batch of texts of about equal length at a time.

    Yields the places of the batch's texts, and their states, float32 [texts, layers, hidden].
    """
    by_length = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = by_length[start : start + BATCH_TEXTS]
        lengths = torch.tensor([len(texts[i]) for i in batch], device=loaded.device)
        tokens = loaded.padded([texts[i] for i in batch])
        output = loaded.model(
            input_ids=tokens,
            attention_mask=(torch.arange(tokens.shape[1], device=loaded.device) < lengths[:, None]).long(),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
        # hidden_states[0] holds the embeddings; the last entry has passed the final norm.
        rows = torch.arange(len(batch), device=loaded.device)
        states = torch.stack([output.hidden_states[index][rows, lengths - 1].float() for index in indices], dim=1)
        loaded.require_finite(states, "hidden states")
        yield batch, states.cpu().numpy()


def untrained(loaded: LoadedModel, seed: int) -> LoadedModel:
    """The same network with fresh weights, drawn by `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed("untrained", seed))
        model: Any = AutoModelForCausalLM.from_config(loaded.model.config)
    model = model.to(device=loaded.device, dtype=loaded.model.dtype).eval().requires_grad_(False)
    return dataclasses.replace(loaded, model=model, content_hash=f"{loaded.content_hash} untrained {seed}")
