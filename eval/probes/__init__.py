"""Linear probes for safe against unsafe text on hidden states.

`texts.py` has the texts, `store.py` the states on disk, `probing.py` the probes, `auc.py` how sure an AUC is. Transfer between
arms and the angles between their directions are in `representations.py`.
"""
