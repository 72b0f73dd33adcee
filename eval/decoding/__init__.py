"""Decoders: how a model's tokens become answers. Top-k sampling and greedy search, SafeBeam, and their settings.

`registry.py` is the table of decoders, `sampling.py` and `safebeam.py` are the algorithms.
"""

from curricula.eval.decoding.registry import DECODERS as DECODERS
from curricula.eval.decoding.settings import Greedy as Greedy
from curricula.eval.decoding.settings import SafeBeam as SafeBeam
from curricula.eval.decoding.settings import TopK as TopK
