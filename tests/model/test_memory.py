import dataclasses

import msgspec
import pytest

from curricula.errors import UsageError
from curricula.jobs.element import FINAL
from curricula.model.config import PRESETS, EngineConfig, ModelConfig
from curricula.model.memory import GIB, GpuInUse, Layout, check_fit, step_memory, what_would_fit

BIG = PRESETS["smollm2-1.7b"]
ON_ONE = Layout(micro_batch=8, sequence_length=2048)
ON_32 = dataclasses.replace(ON_ONE, data_parallel=32)
H100 = 79 * GIB

LITTLE = ModelConfig(layers=4, hidden=64, heads=4, kv_heads=2, ffn=192, vocabulary=512)
N, T = LITTLE.parameters, 2 * 32
SPLIT, SPLIT_LOSS = {"tensor_parallel": 2}, T * 6 * (96 + 64)

MEASURED = [
    (dataclasses.replace(ON_ONE, engine=EngineConfig(backend="te")), 60.8),
    (dataclasses.replace(ON_ONE, engine=EngineConfig(fp8="delayed")), 60.1),
    (ON_ONE, 63.5),
]
"""torch.cuda.max_memory_allocated on one H100 in GiB, for SmolLM2-1.7B with micro-batch 8 of 2048 tokens; measured with a
hand-written prototype of this step, not with this package. Transformer Engine 2.11 in bfloat16 and with delayed fp8 scaling;
Megatron-core's local layers, compiled, with a chunked loss. Our own step has the peak of the last, within 0.1 GiB, in
tests/gpu/dry_run.py.
"""


@pytest.mark.parametrize(("layout", "peak_gib"), MEASURED, ids=["te", "te fp8", "torch"])
def test_the_estimate_is_within_three_percent_of_measured_peaks(layout, peak_gib):
    assert step_memory(BIG, layout).total / GIB == pytest.approx(peak_gib, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "weights", "gradients", "optimizer", "activations", "loss"),
    [
        ({}, 2 * N, 4 * N, 12 * N, T * 4 * 2176, T * 1536),
        ({"engine": EngineConfig(backend="te")}, 2 * N, 4 * N, 12 * N, T * 4 * 2048, T * 1536),
        ({"engine": EngineConfig(fp8="delayed")}, 2 * N + 2 * (N - 512 * 64), 4 * N, 12 * N, T * 4 * 1792, T * 1536),
        ({"engine": EngineConfig(recompute_layers=3)}, 2 * N, 4 * N, 12 * N, T * (2 * 2176 + 3 * 128), T * 1536),
        ({"engine": EngineConfig(recompute_layers=9)}, 2 * N, 4 * N, 12 * N, T * (2176 + 4 * 128), T * 1536),
        ({"data_parallel": 32}, 2 * N, 4 * N, 12 * N // 32, T * 4 * 2176, T * 1536),
        (SPLIT, N, 2 * N, 6 * N, T * 4 * 1088, SPLIT_LOSS),
        ({**SPLIT, "data_parallel": 4}, N, 2 * N, 6 * N // 4, T * 4 * 1088, SPLIT_LOSS),
        ({**SPLIT, "engine": EngineConfig(fp8="delayed")}, 2 * N - 512 * 64, 2 * N, 6 * N, T * 4 * 896, SPLIT_LOSS),
        ({**SPLIT, "engine": EngineConfig(recompute_layers=4)}, N, 2 * N, 6 * N, T * (1088 + 4 * 64), SPLIT_LOSS),
        ({**SPLIT, "engine": EngineConfig(sequence_parallel=False)}, N, 2 * N, 6 * N, T * 4 * (512 + 832), SPLIT_LOSS),
    ],
)
def test_the_parts_of_the_estimate_are_those_of_the_formula(changes, weights, gradients, optimizer, activations, loss):
    estimate = step_memory(LITTLE, Layout(**{"micro_batch": 2, "sequence_length": 32} | changes))
    assert (estimate.weights, estimate.gradients, estimate.optimizer) == (weights, gradients, optimizer)
    assert (estimate.activations, estimate.loss) == (activations, loss)


def test_the_logits_of_a_large_vocabulary_take_more_than_a_layers_gradients():
    estimate = step_memory(msgspec.structs.replace(LITTLE, vocabulary=4096), Layout(2, 32, tensor_parallel=2))
    assert estimate.loss == T * (2 * 4096 // 2 + 4 * 64)


@pytest.mark.parametrize("several", [{"data_parallel": 2}, {"tensor_parallel": 2}], ids=["data", "tensor"])
def test_several_gpus_need_room_for_nccls_buffers(several):
    assert step_memory(BIG, ON_ONE).nccl == 0
    assert step_memory(BIG, dataclasses.replace(ON_ONE, **several)).nccl == 2 * GIB


def test_micro_batch_16_fits_an_h100_if_layers_are_recomputed_and_fewer_of_them_once_the_optimizer_is_split():
    for data_parallel, layers in ((1, 9), (8, 4), (32, 3)):
        layout = dataclasses.replace(ON_ONE, micro_batch=16, data_parallel=data_parallel)
        for change, fits in ((0, True), (-1, False)):
            engine = EngineConfig(recompute_layers=layers + change)
            assert (step_memory(BIG, dataclasses.replace(layout, engine=engine)).total < H100) == fits


def test_a_step_that_cannot_fit_is_refused_with_its_numbers_and_what_would_fit():
    greedy = dataclasses.replace(ON_ONE, micro_batch=16)
    with pytest.raises(UsageError) as refusal:
        check_fit(BIG, greedy, H100, H100)
    message = str(refusal.value)
    assert message.startswith("micro_batch 16 of 2048 tokens needs about 9")
    assert "which has room for 77.0 GiB; use micro_batch 8 or engine." in message
    for change in what_would_fit(BIG, greedy, H100):
        name, value = change.split()
        engine = EngineConfig(recompute_layers=int(value))
        changed = {"micro_batch": int(value)} if name == "micro_batch" else {"engine": engine}
        assert step_memory(BIG, dataclasses.replace(greedy, **changed)).total <= H100
    assert "more GPUs" in what_would_fit(BIG, ON_ONE, 10 * GIB)[0]


@pytest.mark.parametrize("before", [0, 5])
def test_as_few_layers_are_recomputed_as_fit_and_at_most_all(before):
    layout = dataclasses.replace(ON_ONE, micro_batch=16, engine=EngineConfig(recompute_layers=before))
    for layers in (7, BIG.layers):
        enough = step_memory(BIG, dataclasses.replace(layout, engine=EngineConfig(recompute_layers=layers))).total
        assert f"engine.recompute_layers {layers}" in what_would_fit(BIG, layout, enough)
    assert not any("recompute" in change for change in what_would_fit(BIG, layout, enough - 1))


def test_memory_that_others_hold_is_no_reason_to_change_the_study():
    needed = step_memory(BIG, ON_ONE).total
    with pytest.raises(GpuInUse, match=r"of whose 79.0 GiB only 39.0 are free; `nvidia-smi` on") as busy:
        check_fit(BIG, ON_ONE, H100 - 40 * GIB, H100)
    assert busy.value.exit_code not in FINAL
    with pytest.raises(UsageError):  # too small a GPU, whoever is on it
        check_fit(BIG, ON_ONE, needed // 2, needed + GIB)
    with pytest.raises(UsageError):  # what the process has besides its tensors is lacking: nobody else will make room
        check_fit(BIG, ON_ONE, needed - 1, needed - 1 + GIB)
    with pytest.raises(UsageError, match="use micro_batch 8 or"):  # which fits once the others are gone
        check_fit(BIG, dataclasses.replace(ON_ONE, micro_batch=16), H100 - 40 * GIB, H100)


def test_tight_memory_is_logged(caplog):
    needed = check_fit(BIG, ON_ONE, H100, H100)
    assert not caplog.records
    check_fit(BIG, ON_ONE, int(needed.total * 1.02), H100)
    assert "memory will be tight: about 64" in caplog.text


def test_an_open_choice_of_backend_is_estimated_as_the_larger_one():
    open_choice = step_memory(BIG, ON_32).total
    for engine in (EngineConfig(backend="te"), EngineConfig(backend="torch"), EngineConfig(fp8="delayed")):
        assert step_memory(BIG, dataclasses.replace(ON_32, engine=engine)).total <= open_choice
