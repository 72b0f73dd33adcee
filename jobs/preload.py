"""What the process that local elements are forked from imports once, so that each element starts in milliseconds."""

import contextlib
import gc
import os

os.dup2(2, 1)  # libraries may print, and standard output is the live display's
gc.disable()  # nothing of what is imported is garbage

import curricula.model.train

# First: who loads torch's compiler first makes it choose a cache for all, and `model/megatron.py` takes that choice back.
# isort: split
import scipy.stats
import sklearn.linear_model
import tensorboard.summary.writer.event_file_writer
import torch
import transformers.models.llama.modeling_llama
from transformers import AutoTokenizer

import curricula.eval.runner
import curricula.jobs.local
import curricula.model.convert
from curricula.jobs.study import STUDIES, load_study

# What is computed at first use and then kept: the fields of a study's structs, and transformers' thousand expressions.
with contextlib.suppress(Exception):  # it only saves time, and other versions of transformers have no such function
    load_study(STUDIES / "demo.yaml")
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")

gc.freeze()  # an element's first collection would go through all these modules' objects, and copy their memory pages
gc.enable()
