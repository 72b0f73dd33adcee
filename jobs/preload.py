"""What the server that local elements are forked from imports, once, so that each element starts in milliseconds."""

import contextlib
import gc
import os

os.dup2(2, 1)  # libraries may print, and standard output is the live display's
gc.disable()  # nothing that is imported is garbage

import curricula.model.train

# First: importing torch's compiler chooses a cache for all processes, and `model/megatron.py` undoes that choice if its own
# import is the first.
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

# Compute what is otherwise computed at first use: the fields of a study's structs, and transformers' thousand expressions.
with contextlib.suppress(Exception):  # this only saves time, and other versions of transformers lack the function
    load_study(STUDIES / "demo.yaml")
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")

gc.freeze()  # else an element's first collection would visit all objects of these modules, and so copy their memory pages
gc.enable()
