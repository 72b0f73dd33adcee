"""Linear probes: how well a logistic regression separates safe from unsafe text by the last token's hidden state.

Section 4.3 and appendix B of the paper: 500 safe and 500 unsafe training texts, the full balanced test set, area under
the ROC curve, five seeds. The paper leaves open, and we chose: hidden states are the blocks' outputs in the residual
stream, except for the last layer, which is taken after the final norm, as the model itself reads it; no scaling; L2 with
C = 1. The seed draws the balanced training subset. Each row also has the AUC of the same probe on the text's length
alone: an AUC that length explains is no evidence of a representation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch

from curricula.curriculum.sources.tables import Table
from curricula.errors import UserError
from curricula.eval.config import Layer, Probes
from curricula.eval.models import LoadedModel
from curricula.eval.rows import ProbeRow, append_rows, finished_batches, in_order, row_key
from curricula.progress import Progress
from curricula.randomness import keyed_rng

VERSION = 1
"""Version of the procedure, part of every row's key."""
BATCH_TEXTS = 32
"""Texts in one forward pass."""


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    layer: Layer
    layer_index: int
    seed: int
    auc: float
    n_train: int
    n_test: int
    baseline_length_auc: float


class LabelledTexts(msgspec.Struct, frozen=True):
    texts: list[str]
    unsafe: np.ndarray
    """Bool, one per text."""


def probe_rows(
    loaded: LoadedModel, config: Probes, data_root: Path | None, path: Path, seed: int, progress: Progress
) -> list[ProbeRow]:
    """Fit and test all probes, unless `path` already holds their rows; they are written together."""
    train, test = (load_texts(data_root, split, config) for split in ("train", "test"))
    texts = row_key(train=train.texts, test=test.texts, labels=[train.unsafe.tolist(), test.unsafe.tolist()])
    # Keys still hold a setting that once limited the test set, so that rows of earlier runs stay valid.
    settings = {**msgspec.to_builtins(config), "test_per_class": None}
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
        )
        for draw in range(config.seeds)
        for layer in config.layers
    ]
    if not finished_batches(path, ProbeRow, [keys]):
        results = run_probes(loaded, train, test, config, seed)
        append_rows(
            path,
            [
                ProbeRow(
                    key=key,
                    model=loaded.content_hash,
                    model_kind=loaded.kind,
                    step=loaded.step,
                    **msgspec.structs.asdict(result),
                )
                for key, result in zip(keys, results)
            ],
        )
    progress(len(keys), len(keys))
    return in_order(path, ProbeRow, [keys])


def load_texts(root: Path | None, split: str, config: Probes) -> LabelledTexts:
    """The table probes/<split> under the root folder, columns text and score; raises UserError if it is missing."""
    if root is None:
        raise UserError(
            "the probe texts are not on the Hugging Face hub; write probes/train.jsonl and probes/test.jsonl with "
            "columns text and score (0 safe to 5 unsafe) into a folder and name it in CURRICULA_DATA"
        )
    path = root / "probes" / split
    rows = list(Table.open(path).rows())
    for number, row in enumerate(rows, start=1):
        for column in ("text", "score"):
            if column not in row:
                raise UserError(f"{path}: row {number} has no column {column!r}, only {sorted(row)}; add it")
        if not isinstance(row["text"], str) or not is_utf8(row["text"]):
            raise UserError(f"{path}: row {number}: column 'text' is no UTF-8 text; correct the row")
        if str(row["score"]).strip().removesuffix(".0") not in ("0", "1", "2", "3", "4", "5"):
            raise UserError(
                f"{path}: row {number}: column 'score' is {row['score']!r:.40}; a score is 0 (safe) to 5 (unsafe)"
            )
    # Scores between safe and the threshold are neither.
    used = [row for row in rows if int(float(row["score"])) == 0 or int(float(row["score"])) >= config.unsafe_score]
    return LabelledTexts(
        [row["text"] for row in used], np.array([int(float(row["score"])) > 0 for row in used], dtype=bool)
    )


def is_utf8(text: str) -> bool:
    """Whether `text` holds no lone surrogate, which stands for a byte that was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def layer_index(layer: Layer, layers: int) -> int:
    """The block, counted from 1, whose output a layer is: first, middle (the 13th of 24) or last."""
    return {"first": 1, "middle": min(layers // 2 + 1, layers), "last": layers}[layer]


@torch.inference_mode()
def last_token_states(
    loaded: LoadedModel, texts: Sequence[str], indices: Sequence[int], config: Probes
) -> tuple[np.ndarray, np.ndarray]:
    """Hidden states of last tokens, float32 [len(indices), texts, hidden], and lengths of the texts in tokens [texts]."""
    limit = min(config.max_tokens, loaded.context_length)
    encoded = [loaded.encode_turn("", text, "")[:limit] or list(loaded.end_ids[:1]) for text in texts]
    states = np.empty((len(indices), len(texts), loaded.model.config.hidden_size), dtype=np.float32)
    by_length = sorted(range(len(texts)), key=lambda i: (len(encoded[i]), i))
    for start in range(0, len(texts), BATCH_TEXTS):
        batch = by_length[start : start + BATCH_TEXTS]
        width = max(len(encoded[i]) for i in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, i in enumerate(batch):  # padding on the right, where no text token attends to it
            tokens[row, : len(encoded[i])] = torch.tensor(encoded[i])
            mask[row, : len(encoded[i])] = 1
        output = loaded.model(
            input_ids=tokens.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=1,
        )
        ends = mask.sum(1).to(loaded.device) - 1
        for place, index in enumerate(indices):
            # hidden_states[0] holds the embeddings; the last entry has passed the final norm.
            hidden = output.hidden_states[index]
            ends_of_texts = hidden[torch.arange(len(batch), device=hidden.device), ends].float()
            loaded.require_finite(ends_of_texts, "hidden states")
            states[place, batch] = ends_of_texts.cpu().numpy()
    return states, np.array([len(ids) for ids in encoded], dtype=np.float32)


def balanced(unsafe: np.ndarray, per_class: int | None, *key: object) -> np.ndarray:
    """Places of equally many safe and unsafe texts, drawn by key: `per_class` of each, or as many as there are."""
    classes = [np.flatnonzero(~unsafe), np.flatnonzero(unsafe)]
    have = min(map(len, classes))
    count = have if per_class is None else per_class
    if count > have or have == 0:
        raise UserError(
            f"the probe texts hold {len(classes[0])} safe and {len(classes[1])} unsafe ones, fewer than "
            f"{max(count, 1)} of each; lower probes.train_per_class or add texts"
        )
    rng = keyed_rng("probes", *key)
    return np.sort(np.concatenate([rng.permutation(members)[:count] for members in classes]))


def auc_of(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Test AUC of a logistic regression fitted on [texts, features]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    probe = LogisticRegression(max_iter=1000).fit(train, train_labels)
    return float(roc_auc_score(test_labels, probe.decision_function(test)))


def run_probes(
    loaded: LoadedModel, train: LabelledTexts, test: LabelledTexts, config: Probes, seed: int
) -> list[ProbeResult]:
    """Probes for all layers and seeds; the test set is drawn once and shared by all of them."""
    indices = [layer_index(layer, loaded.layers) for layer in config.layers]
    held_out = balanced(test.unsafe, None, seed, "test")
    test_states, test_lengths = last_token_states(loaded, [test.texts[i] for i in held_out], indices, config)
    test_labels = test.unsafe[held_out]
    subsets = [balanced(train.unsafe, config.train_per_class, seed, "train", draw) for draw in range(config.seeds)]
    needed = np.unique(np.concatenate(subsets))
    states, lengths = last_token_states(loaded, [train.texts[i] for i in needed], indices, config)
    results = []
    for draw, subset in enumerate(subsets):
        rows = np.searchsorted(needed, subset)
        labels = train.unsafe[subset]
        by_length = auc_of(lengths[rows, None], labels, test_lengths[:, None], test_labels)
        for place, (layer, index) in enumerate(zip(config.layers, indices)):
            results.append(
                ProbeResult(
                    layer=layer,
                    layer_index=index,
                    seed=draw,
                    auc=auc_of(states[place, rows], labels, test_states[place], test_labels),
                    n_train=len(subset),
                    n_test=len(held_out),
                    baseline_length_auc=by_length,
                )
            )
    return results
