"""Imported once by the process that elements are forked from on one machine, so that each starts in milliseconds."""

import megatron.core  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoTokenizer  # noqa: F401

import eval.element  # noqa: F401
import model.convert
import model.train  # noqa: F401
