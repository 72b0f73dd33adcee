"""The folder of a line's checkpoints: which are complete, which is the latest, what each holds. Imports no torch.

checkpoints/latest              the name of the newest complete checkpoint
checkpoints/step_00000100/      one checkpoint; it appears by rename, so it is whole or not there
    checkpoint.json             what it holds (`CheckpointInfo`), with the size and hash of every other file
    metadata.json, .metadata, *.distcp, common.pt     Megatron-core's distributed checkpoint
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from curricula.durable import read_json, sync_folder, write_json, write_text
from curricula.errors import UserError
from curricula.model.config import ModelConfig

log = logging.getLogger(__name__)

INFO_FILE = "checkpoint.json"
STEP_FOLDER = re.compile(r"step_\d{8,}")


class StoredFile(msgspec.Struct, frozen=True):
    """A file of a checkpoint as it was when the checkpoint was complete."""

    size_bytes: int
    sha256: str


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
    """Of Python, torch, Megatron-core and this code (a git commit)."""
    tensor_parallel: int = 1
    """Tensor-parallel size that wrote it. Only the states of random generators depend on it."""
    files: dict[str, StoredFile] = {}
    """Every other file of the folder."""


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint that `latest` names, or None where there is none yet.

    Where `latest` is lost or damaged it is the newest checkpoint there is. Raises UserError when it names one that is
    not there: what was meant is then the user's to say.
    """
    name = _pointer(checkpoints)
    if name is None:
        return max(_complete(checkpoints), default=None)
    folder = checkpoints / name
    if not folder.is_dir():
        raise UserError(
            f"{checkpoints / 'latest'}: names {name}, which is not there; write an existing step_… into it or delete it"
        )
    return folder


def checkpoints_to_resume(checkpoints: Path) -> list[Path]:
    """Where training may go on from, best first: the latest checkpoint, then the older ones."""
    name = _pointer(checkpoints)
    return sorted((path for path in _complete(checkpoints) if name is None or path.name <= name), reverse=True)


def _pointer(checkpoints: Path) -> str | None:
    """What `latest` says; None where it is missing or says nothing that could be a checkpoint's name."""
    pointer = checkpoints / "latest"
    try:
        name = pointer.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    if STEP_FOLDER.fullmatch(name):
        return name
    log.warning("%s: damaged, it holds %r; taking the newest checkpoint there", pointer, name[:40])
    return None


def _complete(checkpoints: Path) -> list[Path]:
    return [path for path in checkpoints.glob("step_*") if STEP_FOLDER.fullmatch(path.name) and path.is_dir()]


def read_info(folder: Path) -> CheckpointInfo:
    """What the checkpoint in `folder` holds, after checking that every file is there in full.

    Raises UserError when one is not; the contents are `damaged_file`'s to check.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint; has the job that writes it finished?")
    path = folder / INFO_FILE
    try:
        info = msgspec.convert(read_json(path), CheckpointInfo)
    except (msgspec.ValidationError, ValueError) as error:
        raise UserError(f"{path}: not a checkpoint record ({error}); {_instead(folder)}") from None
    for name, file in info.files.items():
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            raise UserError(f"{folder / name}: missing; {_instead(folder)}") from None
        if found != file.size_bytes:
            raise UserError(f"{folder / name}: has {found} bytes of {file.size_bytes}; {_instead(folder)}")
    return info


def _instead(folder: Path) -> str:
    return f"delete {folder.name} and run what trained it again: it goes on from an earlier checkpoint"


def damaged_file(folder: Path, info: CheckpointInfo, share: int = 0, shares: int = 1) -> str | None:
    """A sentence about the first file whose bytes are not those that were written, or None.

    Reads every file, as fast as SHA-256 goes (about 1 to 2 GB/s); of several readers each takes every `shares`th.
    """
    for name in sorted(info.files)[share::shares]:
        if stored_file(folder / name) != info.files[name]:
            return f"{folder / name}: damaged, its bytes are not those that were written; {_instead(folder)}"
    return None


def stored_file(path: Path) -> StoredFile:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return StoredFile(file.tell(), digest.hexdigest())


def publish(aside: Path, folder: Path, info: CheckpointInfo, written: Mapping[str, StoredFile]) -> None:
    """Make the finished files of `aside` the checkpoint `folder` and point `latest` at it, each in one atomic step.

    `latest` never moves back here: a checkpoint from before the latest only appears beside it. `written`
    are the files whose hashes are known already. Raises UserError, and points nowhere new, when the folder is not what
    was written.
    """
    files = dict(written)
    for path in sorted(aside.iterdir()):
        if path.name not in files:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            files[path.name] = stored_file(path)
    if not {".metadata", "metadata.json"} <= files.keys():
        raise UserError(f"{aside}: incomplete, it has no metadata; earlier checkpoints are kept, so run it again")
    write_json(aside / INFO_FILE, msgspec.to_builtins(msgspec.structs.replace(info, files=files)))
    read_info(aside)  # every file is there as it was written, also those of other machines
    if folder.exists():  # from before a restart at an earlier step
        remove(folder)
    os.rename(aside, folder)
    sync_folder(folder.parent)
    if checkpoints_to_resume(folder.parent)[0] <= folder:  # else a lost branch point was made again
        point_at(folder)


def point_at(folder: Path) -> None:
    """Make `folder` the latest checkpoint."""
    write_text(folder.parent / "latest", folder.name + "\n")


def prune(checkpoints: Path, keep_last: int, keep_steps: Collection[int]) -> None:
    """Delete all but the newest `keep_last` up to the latest and those of `keep_steps`, and what a kill left half-written.

    Checkpoints beyond the latest are of a future that was given up: `latest` was set back, or a kill came before it moved.
    """
    latest = latest_checkpoint(checkpoints)
    complete = sorted(_complete(checkpoints))
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
    shutil.rmtree(set_aside(folder))


def set_aside(folder: Path) -> Path:
    """Hide a checkpoint that is worthless; the next `prune` deletes it. Returns where it is now."""
    doomed = folder.with_name(f".{folder.name}.deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    os.rename(folder, doomed)
    return doomed


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
