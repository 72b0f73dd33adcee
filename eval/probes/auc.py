"""The area under the ROC curve with its standard error over test texts (DeLong, DeLong and Clarke-Pearson 1988)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def aucs(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """AUC of each column of `scores` [texts, probes] for the bool labels `positive` [texts]; float64 [probes]."""
    m, n = int(positive.sum()), int((~positive).sum())
    return (rankdata(scores, axis=0)[positive].sum(axis=0) - m * (m + 1) / 2) / (m * n)


def auc_with_error(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """AUC of `scores` for the bool labels `positive`, and DeLong's standard error; both classes need two members.

    Where no text differs from another, as with an AUC of 1, the error is not 0 but what it would be if one text of the smaller
    class were ordered rightly with half of the other class.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    auc, ranks = float(aucs(scores[:, None], positive)[0]), rankdata(scores)
    own = np.empty(len(scores))
    own[positive], own[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    # Each text's placement: the share of the other class that it is ordered rightly with.
    above = (ranks[positive] - own[positive]) / n
    below = 1 - (ranks[~positive] - own[~positive]) / m
    variance = above.var(ddof=1) / m + below.var(ddof=1) / n
    return auc, float(variance**0.5) or 0.5 / min(m, n)
