"""The area under the ROC curve with its standard error over test texts (DeLong, DeLong and Clarke-Pearson 1988)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

Placements = tuple[np.ndarray, np.ndarray]
"""Of each unsafe and each safe text the share of the other class that it is ordered rightly with, float64 [texts]. The mean of
either is the AUC, and the mean or difference of the placements of several probes is that of their AUCs."""


def placements(scores: np.ndarray, positive: np.ndarray) -> Placements:
    """How well `scores` [texts] order each text against the other class, by the bool labels `positive`."""
    ranks = rankdata(scores)
    own = np.empty(len(scores))
    own[positive], own[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    m, n = int(positive.sum()), int((~positive).sum())
    return (ranks[positive] - own[positive]) / n, 1 - (ranks[~positive] - own[~positive]) / m


def standard_error(of: Placements) -> float:
    """DeLong's standard error of an AUC, or of a mean or difference of AUCs on the same texts.

    Never less than if one text of the smaller class were ordered rightly with half of the other class: near an AUC of 1, or
    where two arms order all texts alike, DeLong's variance would be close to 0. So it is where a class has a single text.
    """
    fewest = min(map(len, of))
    variance = sum(part.var(ddof=1) / len(part) for part in of) if fewest > 1 else 0.0
    return max(float(variance**0.5), 0.5 / fewest)
