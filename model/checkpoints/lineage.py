"""Whether a checkpoint may be gone on from: its past must be the past of the run that wants it. Imports no torch.

The future may differ; that is how arms branch. So data and learning rates are compared up to its step only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from curricula.curriculum.stream.batches import BatchSource
from curricula.errors import UserError
from curricula.model.checkpoints.folder import CheckpointInfo, differences, read_info
from curricula.model.config import ModelConfig, OptimizerConfig, ScheduleConfig
from curricula.model.schedule import learning_rate
from curricula.randomness import key_seed

# What may differ between the model that wrote weights and the one that takes them: neither changes any weight.
NOT_IN_WEIGHTS = ("sequence_length", "init_std")


def check_weights(folder: Path, info: CheckpointInfo, model: ModelConfig) -> None:
    """Raise UserError unless the weights of `folder` are those of a model like `model`."""
    then, now = msgspec.to_builtins(info.model), msgspec.to_builtins(model)
    for name in NOT_IN_WEIGHTS:
        then.pop(name), now.pop(name)
    _refuse(folder, "is a checkpoint of another model", differences(then, now, "model"))


def identity(folder: Path) -> str:
    """A short name for what `folder` was trained by: equal for equal model, recipe, data and step, wherever it lies."""
    info = read_info(folder)
    led_to_it = {"model": msgspec.to_builtins(info.model), "recipe": info.recipe, "data": info.data}
    return f"step {info.step} of {key_seed(json.dumps(led_to_it, sort_keys=True)):016x}"


def check_past(
    folder: Path, info: CheckpointInfo, model: ModelConfig, recipe: dict[str, Any], batches: BatchSource
) -> None:
    """Raise UserError, naming what changed, unless the run described would have come to this checkpoint itself."""
    was, is_now = msgspec.to_builtins(info.model), msgspec.to_builtins(model)
    _refuse(folder, "is a checkpoint of another model", differences(was, is_now, "model"))
    data = json.loads(json.dumps(batches.fingerprint(info.step)))
    _refuse(folder, f"was trained on other data up to step {info.step}", differences(info.data, data, "data"))
    recipe_then, recipe_now = dict(info.recipe), dict(recipe)
    try:
        rates_then = _rates(recipe_then, info.step)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise UserError(f"{folder}: its record has no usable recipe ({error}); name another checkpoint") from None
    rates_now = _rates(recipe_now, info.step)
    _refuse(folder, "was trained by another recipe", differences(recipe_then, recipe_now, "recipe"))
    if rates_then != rates_now:
        step = next(i for i, (a, b) in enumerate(zip(rates_then, rates_now)) if a != b)
        phrase = f"learning rate of step {step + 1}: was {rates_then[step]:.6g}, is {rates_now[step]:.6g}"
        _refuse(folder, "was trained by another recipe", [phrase])


def _rates(recipe: dict[str, Any], steps: int) -> list[float]:
    """The learning rates of the first `steps` steps; takes out of `recipe` the entries that only they depend on."""
    schedule = msgspec.convert(recipe.pop("schedule"), ScheduleConfig)
    total_steps = recipe.pop("total_steps")
    optimizer = msgspec.convert(recipe["optimizer"], OptimizerConfig)
    return [learning_rate(step, total_steps, optimizer, schedule) for step in range(steps)]


def _refuse(folder: Path, what: str, phrases: list[str]) -> None:
    if phrases:
        shown = "; ".join(phrases[:4]) + (f"; and {len(phrases) - 4} more" if len(phrases) > 4 else "")
        raise UserError(f"{folder}: {what} ({shown}); undo the change, or train in a new run folder")
