"""The folder of a line's checkpoints: which are complete, which is the latest, what each holds. Imports no torch.

checkpoints/latest              the name of the newest complete checkpoint
checkpoints/step_00000100/      one checkpoint; it appears by rename, so it is whole or not there
    checkpoint.json             what it holds (`CheckpointInfo`), with the size of every other file
    metadata.json, .metadata, *.distcp, common.pt     Megatron-core's distributed checkpoint
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from curriculum.durable import read_json, sync_folder, write_json, write_text
from curriculum.errors import UserError
from model.config import ModelConfig

INFO_FILE = "checkpoint.json"


class CheckpointInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds and what led to it."""

    step: int
    """Optimizer steps done."""
    consumed_samples: int
    consumed_tokens: int
    model: ModelConfig
    precision: str
    """Data type of the weights, such as "float32"."""
    full: bool
    """Whether the optimizer's state is there too, so that training can go on exactly; else only weights."""
    data: dict[str, Any] = {}
    """Fingerprint of the batches before `step`."""
    recipe: dict[str, Any] = {}
    """Seed, optimizer, schedule and length of the run that wrote it."""
    versions: dict[str, str] = {}
    files: dict[str, int] = {}
    """Size in bytes of every other file of the folder."""


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint that `latest` names, or None where there is none yet."""
    pointer = checkpoints / "latest"
    if not pointer.exists():
        return None
    folder = checkpoints / pointer.read_text().strip()
    if not folder.is_dir():
        raise UserError(
            f"{pointer}: names {folder.name}, which is not there; write an existing step_… into it or delete it"
        )
    return folder


def read_info(folder: Path) -> CheckpointInfo:
    """What the checkpoint in `folder` holds, after checking that every file is there in full."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint; has the job that writes it finished?")
    path = folder / INFO_FILE
    try:
        info = msgspec.convert(read_json(path), CheckpointInfo)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint record ({error}); name another checkpoint") from None
    for name, size in info.files.items():
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            raise UserError(f"{folder / name}: missing; delete {folder.name} and use an earlier checkpoint") from None
        if found != size:
            raise UserError(
                f"{folder / name}: has {found} bytes of {size}; delete {folder.name} and use an earlier checkpoint"
            )
    return info


def publish(aside: Path, folder: Path, info: CheckpointInfo) -> None:
    """Make the finished files of `aside` the checkpoint `folder` and point `latest` at it, each in one atomic step."""
    sizes = {}
    for path in sorted(aside.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        sizes[path.name] = path.stat().st_size
    write_json(aside / INFO_FILE, msgspec.to_builtins(msgspec.structs.replace(info, files=sizes)))
    if folder.exists():  # from before a restart at an earlier step
        remove(folder)
    os.rename(aside, folder)
    sync_folder(folder.parent)
    write_text(folder.parent / "latest", folder.name + "\n")


def prune(checkpoints: Path, keep_last: int, keep_steps: Collection[int]) -> None:
    """Delete all but the newest `keep_last` up to the latest and those of `keep_steps`, and what a kill left half-written.

    Checkpoints beyond the latest are of a future that was given up: `latest` was set back, or a kill came before it moved.
    """
    latest = latest_checkpoint(checkpoints)
    complete = sorted(path for path in checkpoints.glob("step_[0-9]*") if path.is_dir())
    past = [folder for folder in complete if latest is None or folder.name <= latest.name]
    for folder in complete:
        if folder not in past or (folder not in past[-keep_last:] and _step_of(folder) not in keep_steps):
            remove(folder)
    for leftover in checkpoints.glob(".step_*"):
        shutil.rmtree(leftover)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def remove(folder: Path) -> None:
    """Delete a checkpoint so that no reader ever sees part of it."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.rename(folder, doomed)
    shutil.rmtree(doomed)


def differences(then: Any, now: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, one phrase each: "mix.web: was 0.7, is 0.6"."""
    if isinstance(then, dict) and isinstance(now, dict):
        found = []
        for key in sorted({*then, *now}):
            found += differences(then.get(key), now.get(key), f"{at}.{key}" if at else str(key))
        return found
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [phrase for i, pair in enumerate(zip(then, now)) for phrase in differences(*pair, f"{at}[{i}]")]
    return [] if then == now else [f"{at}: was {_short(then)}, is {_short(now)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
