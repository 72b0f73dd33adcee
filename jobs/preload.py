"""What the process that local elements are forked from imports once, so that each element starts in milliseconds."""

import scipy.stats  # noqa: F401
import sklearn.linear_model  # noqa: F401
import tensorboard.summary.writer.event_file_writer  # noqa: F401
import torch  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from transformers import AutoTokenizer  # noqa: F401

import curricula.eval.runner
import curricula.model.convert
import curricula.model.train  # noqa: F401
