import math
import subprocess
import sys

import msgspec
import pytest

from curricula.model.config import PRESETS, ModelConfig, OptimizerConfig, ScheduleConfig, decay_start, learning_rate


def test_a_model_that_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="kv_heads"):
        ModelConfig(layers=1, hidden=64, heads=4, kv_heads=3, ffn=64)
    with pytest.raises(ValueError, match="layers is 0: Expected `int` >= 1"):
        ModelConfig(layers=0, hidden=64, heads=4, kv_heads=4, ffn=64)
    with pytest.raises(ValueError, match="hidden 65 is not a multiple of heads 4"):
        ModelConfig(layers=1, hidden=65, heads=4, kv_heads=4, ffn=64)
    with pytest.raises(ValueError, match="rotary positions need an even head size"):
        ModelConfig(layers=1, hidden=12, heads=4, kv_heads=4, ffn=64)


def test_planning_does_not_import_torch():
    code = "import sys; from curricula.model import config, memory, network; from curricula.model.checkpoints import folder\n"
    code += "from curricula.model.runtime import reporting, spikes, stopping\n"
    code += "print({'torch', 'megatron'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_warmup_stable_decay_warms_up_stays_and_falls_to_zero_over_the_last_tenth():
    rates = [learning_rate(s, 1000, OptimizerConfig(lr=1.0), ScheduleConfig(warmup_steps=10)) for s in range(1000)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert set(rates[10:901]) == {1.0}
    assert rates[950] == pytest.approx(0.5)
    assert rates[999] == pytest.approx(0.01)
    assert learning_rate(1000, 1000, OptimizerConfig(lr=1.0), ScheduleConfig(warmup_steps=10)) == 0.0
    constant = ScheduleConfig(warmup_steps=10, decay_fraction=0.0)  # as for midtraining, which brings it down
    assert {learning_rate(s, 1000, OptimizerConfig(lr=0.5), constant) for s in (9, 10, 500, 999)} == {0.5}


def test_the_rate_before_the_decay_does_not_depend_on_the_length_of_the_run():
    optimizer, schedule = OptimizerConfig(), ScheduleConfig(warmup_steps=20)
    short = [learning_rate(s, 1000, optimizer, schedule) for s in range(900)]
    assert short == [learning_rate(s, 5000, optimizer, schedule) for s in range(900)]


@pytest.mark.parametrize("kind", ["warmup-stable-decay", "cosine"])
def test_the_decay_starts_at_the_last_step_of_the_peak_rate(kind):
    schedule = ScheduleConfig(kind=kind, warmup_steps=10)
    start = decay_start(100, schedule)
    at, after = (learning_rate(step, 100, OptimizerConfig(lr=1.0), schedule) for step in (start, start + 1))
    assert after < at == 1.0 and decay_start(5, ScheduleConfig(kind="cosine", warmup_steps=10)) == 5


def test_cosine_warms_up_by_a_fraction_and_falls_to_its_final_share():
    schedule = ScheduleConfig(kind="cosine", warmup_fraction=0.04, final_fraction=0.1)
    rates = [learning_rate(s, 100, OptimizerConfig(lr=2e-5), schedule) for s in range(101)]
    assert rates[3] == rates[4] == max(rates) == 2e-5
    assert rates[28] == pytest.approx(2e-5 * (0.1 + 0.9 * (2 + math.sqrt(2)) / 4))  # a quarter of the way
    assert rates[52] == pytest.approx(2e-5 * 0.55)
    assert rates[100] == pytest.approx(2e-6)


def test_the_defaults_are_smollm2s():
    """Records of checkpoints that lack a setting mean these, too."""
    published = {"lr": 5e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.01, "clip_grad": 1.0}
    assert msgspec.to_builtins(OptimizerConfig()) == published
    schedule = ScheduleConfig()
    assert (schedule.warmup_steps, schedule.decay_fraction, schedule.final_fraction) == (2000, 0.1, 0.0)
    spreads = [PRESETS[f"smollm2-{size}"].init_std for size in ("1.7b", "360m", "135m")]
    assert spreads == [0.02, 0.03227, 0.041667]


def test_constraints_of_the_optimizer_and_schedule_name_the_key():
    with pytest.raises(ValueError, match="lr is 0: Expected `float` > 0.0"):
        OptimizerConfig(lr=0)
    with pytest.raises(ValueError, match="warmup_fraction is 1.5: Expected `float` <= 1.0"):
        ScheduleConfig(warmup_fraction=1.5)


def test_smollm2_has_the_published_number_of_parameters():
    big = PRESETS["smollm2-1.7b"]
    assert big.parameters == 1_711_376_384
    untied = ModelConfig(layers=24, hidden=2048, heads=32, kv_heads=32, ffn=8192, tied=False)
    assert untied.parameters == 1_812_039_680
    assert PRESETS["smollm2-135m"].parameters == 134_515_008
    assert PRESETS["smollm2-360m"].parameters == 361_821_120
    assert 0.7e6 < PRESETS["tiny"].parameters < 1.3e6


def test_flops_are_six_per_parameter_and_token_plus_causal_attention():
    big = PRESETS["smollm2-1.7b"]
    assert big.flops_per_token(2048) == pytest.approx(10.87e9, rel=1e-3)
    assert big.flops_per_token(0) == 6 * big.parameters
    untied = ModelConfig(layers=24, hidden=2048, heads=32, kv_heads=32, ffn=8192, tied=False)
    assert untied.flops_per_token(2048) == big.flops_per_token(2048)
