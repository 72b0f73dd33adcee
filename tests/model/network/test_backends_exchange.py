"""What one backend saved, every other can continue: with Transformer Engine's stand-in, in a process of its own."""

import itertools
import json
import subprocess
import sys

import pytest
from paths import SUPPORT

BACKENDS = ("cpu", "torch", "te", "te-fp8")
HISTORIES = ("te-fp8", "te-fp8")
QUICK = {*((one, "cpu") for one in BACKENDS), *(("cpu", one) for one in BACKENDS), ("te", "te-fp8"), HISTORIES}
"""Pairs of a writer and a reader in which each writes and each reads, and both formats of Transformer Engine."""


@pytest.fixture(scope="module")
def found(tmp_path_factory, request):
    """What `backends_in_child.py` prints, of the pairs that the chosen tests compare."""
    name = f"{test_training_continues_from_the_checkpoint_of_any_backend.__name__}["
    chosen = [item.callspec.params for item in request.session.items if item.name.startswith(name)]
    pairs = sorted({HISTORIES, *((params["writer"], params["reader"]) for params in chosen)})
    folder = tmp_path_factory.mktemp("backends")
    command = [sys.executable, str(SUPPORT / "backends_in_child.py"), str(folder), json.dumps(pairs)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("writer", "reader"),
    [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in itertools.product(BACKENDS, BACKENDS)],
)
def test_training_continues_from_the_checkpoint_of_any_backend(found, writer, reader):
    assert found[f"{writer} to {reader}, whole"] == pytest.approx(found["undisturbed"], abs=1e-5)


@pytest.mark.parametrize(("writer", "reader"), [*((one, "cpu") for one in BACKENDS), *(("cpu", one) for one in BACKENDS[1:])])
def test_tuning_begins_with_the_weights_of_any_backend(found, writer, reader):
    assert found[f"{writer} to {reader}, weights"] == pytest.approx(found["cpu to cpu, weights"], abs=1e-5)


def test_all_backends_take_the_fused_adamw_of_torch_and_keep_it_after_a_change(found):
    assert set(map(str, found["optimizers"].values())) == {str({"class": "AdamW", "fused": [True, True]})}


def test_the_history_of_delayed_fp8_scaling_survives_a_restart_and_takes_no_note_of_validation(found):
    assert len(found["histories, undisturbed"]) == 8  # four products in each of two layers
    assert found["histories, resumed"] == found["histories, undisturbed"]
    assert found["histories, validated"] == found["histories, undisturbed"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_backends_keep_packed_documents_apart(found, backend):
    assert found[f"packed, {backend}"] == pytest.approx(found["packed, cpu"], abs=1e-5)


def test_an_mlp_of_operations_has_the_weights_and_gradients_of_a_plain_one(found):
    """A change of the benchmark's: what a card is to measure must be the same function."""
    differences = found["differences, MLP of operations"]
    assert len(differences) == 14  # six weights in each of two layers, the embedding and the last norm
    assert differences == pytest.approx(dict.fromkeys(differences, 0.0), abs=1e-5)
