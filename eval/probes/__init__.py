"""Linear probes that tell safe from unsafe text by hidden states.

`texts.py` has the texts, `store.py` the states on disk, `probing.py` the probes, `auc.py` the standard error of an AUC.
Transfer between arms and the angles between their directions are in `representations.py`.
"""
