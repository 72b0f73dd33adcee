"""The area under the ROC curve with its standard error over test texts (DeLong, DeLong and Clarke-Pearson 1988)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

Placements = tuple[np.ndarray, np.ndarray]
"""For each unsafe and each safe text, the share of the other class that it is ranked correctly against, float64 [texts]. The
mean over either class is the AUC. Means and differences of several probes' placements are those of their AUCs."""


def placements(scores: np.ndarray, positive: np.ndarray) -> Placements:
    """How well `scores` [texts] rank each text against the other class; `positive` is true for unsafe texts."""
    ranks = rankdata(scores)
    own = np.empty(len(scores))
    own[positive], own[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    m, n = int(positive.sum()), int((~positive).sum())
    return (ranks[positive] - own[positive]) / n, 1 - (ranks[~positive] - own[~positive]) / m


def standard_error(of: Placements) -> float:
    """DeLong's standard error of an AUC, or of a mean or difference of AUCs on the same texts.

    It is at least 0.5 / n for n texts in the smaller class, as if one of them were ranked correctly against only half of the
    other class. Near an AUC of 1, or if two arms rank all texts alike, DeLong's variance is close to 0; for a class with a
    single text it is not defined.
    """
    fewest = min(map(len, of))
    variance = sum(part.var(ddof=1) / len(part) for part in of) if fewest > 1 else 0.0
    return max(float(variance**0.5), 0.5 / fewest)
