"""The preflight's checks of a node with a real driver: `pytest -m gpu`."""

import os

import pytest
import torch

from curricula.jobs.preflight.node_checks import gpu_problems

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_the_drivers_answer_is_understood_and_a_missing_card_noticed():
    cards = torch.cuda.device_count()
    torch.cuda.empty_cache()  # of the tests before: what is in use must be little
    assert gpu_problems(cards, os.environ.get("CUDA_VISIBLE_DEVICES")) == []
    assert gpu_problems(64)[0].endswith("of 64 GPUs answer")
