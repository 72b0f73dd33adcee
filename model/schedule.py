"""The learning rate as a pure function of the step.

Under warmup-stable-decay the rate before the decay depends on neither the arm nor the length of the run; the length only
determines where the decay begins. That is what lets the arms of a study branch from one shared trunk.
"""

from __future__ import annotations

import math

from curricula.model.config import OptimizerConfig, ScheduleConfig


def learning_rate(step: int, total_steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The rate of optimizer step `step`, counted from 0, in a run of `total_steps`.

    Both kinds warm up linearly and reach the peak at the last step of the warm-up. Then "warmup-stable-decay" stays at
    the peak and falls linearly over the last `decay_fraction` of the steps; "cosine" falls along half a cosine.
    """
    warmup = warmup_steps(total_steps, schedule)
    if step < warmup:
        return optimizer.lr * (step + 1) / warmup
    if schedule.kind == "cosine":
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        share = 0.5 * (1.0 + math.cos(math.pi * done))
    else:
        decay_steps = total_steps - decay_start(total_steps, schedule)
        share = 1.0 if decay_steps == 0 else min(1.0, max(0, total_steps - step) / decay_steps)
    return optimizer.lr * (schedule.final_fraction + (1.0 - schedule.final_fraction) * share)


def warmup_steps(total_steps: int, schedule: ScheduleConfig) -> int:
    if schedule.warmup_fraction is not None:
        return math.ceil(schedule.warmup_fraction * total_steps)
    return schedule.warmup_steps


def decay_start(total_steps: int, schedule: ScheduleConfig) -> int:
    """The step from which "warmup-stable-decay" falls: the last with the peak rate."""
    return total_steps - round(schedule.decay_fraction * total_steps)
