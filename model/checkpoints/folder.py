"""The folder of a run's checkpoints: which are complete, which is the latest, what each holds, which run can continue from it.

checkpoints/latest              the name of the newest complete checkpoint
checkpoints/step_00000100/      one checkpoint; it appears by rename, so it is complete or absent
    checkpoint.json             what it holds (`CheckpointInfo`), with the size and hash of every other file
    metadata.json, .metadata, *.distcp, common.pt     Megatron-core's distributed checkpoint

A run can continue from a checkpoint if they have the same past (`check_past`). The future may differ; that is how arms branch.
So data and learning rates are compared only up to the checkpoint's step. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from curricula import fencing
from curricula.durable import names_in, read_json, sync_folder, write_json, write_text
from curricula.errors import UserError
from curricula.model.config import ModelConfig, OptimizerConfig, ScheduleConfig, SpikeGuard, learning_rate
from curricula.randomness import key_seed
from curricula.settings import convert, differences

if TYPE_CHECKING:
    from curricula.curriculum.stream.pretraining import BatchSource

log = logging.getLogger(__name__)

INFO_FILE = "checkpoint.json"
STEP_FOLDER = re.compile(r"step_\d{8,}")
NOT_IN_WEIGHTS = ("sequence_length", "init_std")
"""Keys that may differ between the model that wrote weights and the one that reads them: they affect no weight."""


class OtherVersion(UserError):
    """A checkpoint's record has settings that this version lacks. A later version wrote it, and can continue from it."""


class StoredFile(msgspec.Struct, frozen=True):
    """A file of a checkpoint as it was when the checkpoint was complete."""

    size_bytes: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of its bytes, in hex digits."""


class CheckpointInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds and how it was trained."""

    step: int
    """Optimizer steps done."""
    consumed_samples: int
    """Samples read so far: the place in the data stream."""
    consumed_tokens: int
    """Tokens read so far."""
    model: ModelConfig
    """The network, with the keys of `ModelConfig` in curricula.model.config."""
    precision: str
    """Data type of the weights, such as "float32"."""
    full: bool
    """Whether it also holds the optimizer's state, so that training can continue exactly; otherwise it holds only weights."""
    data: dict[str, Any] = {}
    """Fingerprint of the batches before `step`."""
    recipe: dict[str, Any] = {}
    """Seed, optimizer, schedule and length of the run that wrote it."""
    versions: dict[str, str] = {}
    """Versions of Python, torch, Megatron-core and this code (a git commit)."""
    tensor_parallel: int = 1
    """Tensor-parallel size of the run that wrote it. Only the states of random generators depend on it."""
    recent: tuple[tuple[float, float], ...] = ()
    """Loss and gradient norm of the latest steps, with which the spike guard compares the next."""
    guarded_from: int = 0
    """Number of steps before the first one that the spike guard compares with or goes back to."""
    skipped_in_a_row: int = 0
    """Number of consecutive latest steps that the spike guard skipped."""
    generation: int = 0
    """Number of the element's start that saved it (`curricula.fencing`); 0 outside a study."""
    files: dict[str, StoredFile] = {}
    """Every other file of the folder, by name."""


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:08d}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint that `latest` names, or the newest if `latest` is lost or damaged; None if there is no checkpoint yet.

    Raises UserError if `latest` names one that does not exist: only the user knows which was meant.
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


def require_checkpoint(checkpoints: Path) -> Path:
    """The latest checkpoint in a folder of checkpoints. Raises UserError if there is none."""
    latest = latest_checkpoint(checkpoints)
    if latest is None:
        raise UserError(f"{checkpoints}: no checkpoint here; has the job that trains it finished?")
    return latest


def checkpoints_to_resume(checkpoints: Path) -> list[Path]:
    """The checkpoints from which training can continue, best first: the latest, then older ones."""
    name = _pointer(checkpoints)
    return sorted((path for path in _complete(checkpoints) if name is None or path.name <= name), reverse=True)


def _pointer(checkpoints: Path) -> str | None:
    """The name in `latest`; None if the file is missing or holds anything but a checkpoint's name."""
    pointer = checkpoints / "latest"
    try:
        name = pointer.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    if STEP_FOLDER.fullmatch(name):
        return name
    log.warning("%s: damaged, it holds %r; taking the newest checkpoint", pointer, name[:40])
    return None


def _complete(checkpoints: Path) -> list[Path]:
    """The complete checkpoints. Raises StorageError if they cannot be listed: training would start from scratch."""
    names = names_in(checkpoints)
    return [path for name in names if STEP_FOLDER.fullmatch(name) and (path := checkpoints / name).is_dir()]


def read_info(folder: Path) -> CheckpointInfo:
    """What the checkpoint in `folder` holds. `damaged_file` checks the files' contents.

    Raises UserError unless it is of the folder's step and every file has its size, and OtherVersion if it may be good.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint; {remedy(folder)}")
    path = folder / INFO_FILE
    record = read_json(path)
    try:
        info = convert(record, CheckpointInfo)
    except (msgspec.ValidationError, ValueError) as error:
        # If a key of this version is missing as well, its name is damaged.
        if "unknown field" in str(error) and record["model"].keys() >= set(ModelConfig.__struct_fields__):
            raise OtherVersion(f"{path}: written by a later version ({error}); use that version, or {remedy(folder)}") from None
        raise UserError(f"{path}: not a checkpoint record ({error}); {remedy(folder)}") from None
    if STEP_FOLDER.fullmatch(folder.name) and info.step != step_of(folder):
        raise UserError(f"{folder}: holds step {info.step}, so it was renamed or copied over another; {remedy(folder)}")
    for name, file in info.files.items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            raise UserError(f"{folder / name}: missing; {remedy(folder)}") from None
        if size != file.size_bytes:
            raise UserError(f"{folder / name}: has {size} bytes of {file.size_bytes}; {remedy(folder)}")
    return info


def remedy(folder: Path) -> str:
    """What to do about a lost or damaged checkpoint. A finished training stays done if it loses one from before its end."""
    return (
        f"delete {folder.name} if it is still there, and run the training again: it continues from an earlier checkpoint; "
        "if the training counts as done, copy this one back, or delete all later ones next to it and the element's done.json"
    )


def damaged_file(folder: Path, info: CheckpointInfo, share: int, shares: int) -> str | None:
    """A sentence about the first file whose bytes are not those that were written; None if there is none.

    Reads the files at the speed of SHA-256 (about 1 to 2 GB/s). Each of several readers takes every `shares`-th file.
    """
    for name in sorted(info.files)[share::shares]:
        if stored_file(folder / name) != info.files[name]:
            return f"{folder / name}: damaged, its bytes are not those that were written; {remedy(folder)}"
    return None


def stored_file(path: Path) -> StoredFile:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        return StoredFile(file.tell(), digest.hexdigest())


def publish(aside: Path, folder: Path, info: CheckpointInfo, written: Mapping[str, StoredFile]) -> None:
    """Turn the finished folder `aside` into the checkpoint `folder`, then point `latest` at it; both steps are atomic.

    A checkpoint older than the latest, a lost branch point, is only added. `written` holds the files whose hashes are already
    known. Raises UserError, without moving `latest`, if the files are not those that were written, and Superseded if another
    process now trains this run.
    """
    files = dict(written)
    for path in sorted(aside.iterdir()):
        if path.name not in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[path.name] = stored_file(path)
    if not {".metadata", "metadata.json"} <= files.keys():
        raise UserError(f"{aside}: incomplete, it has no metadata; earlier checkpoints are kept, so run it again")
    info = msgspec.structs.replace(info, files=files, generation=fencing.current_generation())
    write_json(aside / INFO_FILE, msgspec.to_builtins(info))
    read_info(aside)  # checks that every file has its full size here, also those that other machines wrote
    fencing.check_fences()
    if folder.exists():  # left over from before a restart at an earlier step
        _delete(set_aside(folder))
    os.rename(aside, folder)
    sync_folder(folder.parent)
    if not any(other > folder for other in checkpoints_to_resume(folder.parent)):
        point_at(folder)


def point_at(folder: Path) -> None:
    write_text(folder.parent / "latest", folder.name + "\n")


def prune(
    checkpoints: Path,
    keep_last: int,
    keep_steps: Collection[int],
    needed_by: Callable[[Path], Collection[int]] = lambda folder: (),
    in_gap: Path | None = None,
) -> None:
    """Keep `keep_steps`, the newest `keep_last` checkpoints up to the latest, and the steps that each of these needs.

    All others are deleted, and so is what a kill left half-written. Checkpoints beyond the latest belong to an abandoned
    future: `latest` was set back, or a kill came before it moved. `in_gap` is the newest checkpoint of a training that only
    fills a gap before the latest (`newest_whole`): of those up to it, the newest `keep_last` are kept too.
    """
    past = sorted(checkpoints_to_resume(checkpoints))
    until_gap = [folder for folder in past if in_gap is not None and folder <= in_gap]
    kept = {*past[-keep_last:], *until_gap[-keep_last:], *(folder for folder in past if step_of(folder) in keep_steps)}
    needed = {step for folder in kept for step in needed_by(folder)}
    for folder in _complete(checkpoints):
        if folder not in kept and step_of(folder) not in needed:
            set_aside(folder)
    for hidden in checkpoints.glob(".step_*"):
        _delete(hidden)


def _delete(folder: Path) -> None:
    """Delete a folder. If that fails, such as for a file on NFS that a process here has open, the next `prune` retries."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.warning("%s: cannot be deleted yet; the next save tries again", folder)


def set_aside(folder: Path) -> Path:
    """Hide a worthless checkpoint until the next `prune` deletes it. Returns its new path."""
    doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.deleted")
    os.rename(folder, doomed)
    return doomed


def check_weights(folder: Path, model: ModelConfig) -> None:
    """Raise UserError, naming the sizes that differ, unless `model` can begin with the weights of the checkpoint `folder`."""
    _refuse(folder, "is a checkpoint of another model", misfits(read_info(folder).model, model))


def misfits(weights: ModelConfig, model: ModelConfig) -> list[str]:
    """Why weights of one model do not fit another, as phrases such as "layers 2, not 3"."""
    values = zip(model.__struct_fields__, msgspec.structs.astuple(weights), msgspec.structs.astuple(model))
    return [f"{name} {found}, not {wanted}" for name, found, wanted in values if found != wanted and name not in NOT_IN_WEIGHTS]


def identity(folder: Path) -> str:
    """A short name for the training that led to `folder`: equal for equal model, recipe, data and step, wherever the folder is.

    It is computed from the record as written, not as parsed: a setting that was added later must not rename old trainings.
    """
    info, record = read_info(folder), read_json(folder / INFO_FILE)
    past = {"model": record["model"], "recipe": info.recipe, "data": info.data}
    return f"step {info.step} of {key_seed(json.dumps(past, sort_keys=True)):016x}"


def check_past(folder: Path, info: CheckpointInfo, model: ModelConfig, recipe: dict[str, Any], batches: BatchSource) -> None:
    """Raise UserError, naming what changed, unless a run with these settings would have reached exactly this checkpoint."""
    was, is_now = msgspec.to_builtins(info.model), msgspec.to_builtins(model)
    _refuse(folder, "is a checkpoint of another model", differences(was, is_now, "model"))
    data = json.loads(json.dumps(batches.fingerprint(info.step)))
    _refuse(folder, f"was trained on other data up to step {info.step}", differences(info.data, data, "data"))
    try:
        recipe_then, rates_then = _comparable(info.recipe, info.step)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise UserError(f"{folder}: its record has no usable recipe ({error}); name another checkpoint") from None
    recipe_now, rates_now = _comparable(recipe, info.step)
    _refuse(folder, "was trained by another recipe", differences(recipe_then, recipe_now, "recipe"))
    if rates_then != rates_now:
        step = next(i for i, (a, b) in enumerate(zip(rates_then, rates_now)) if a != b)
        phrase = f"learning rate of step {step + 1} was {rates_then[step]:.6g}, now {rates_now[step]:.6g}"
        _refuse(folder, "was trained by another recipe", [phrase])


def warn_of_versions(folder: Path, info: CheckpointInfo, now: Mapping[str, str]) -> None:
    """Log a warning if torch or Megatron-core is not the version that wrote the checkpoint."""
    changed = [
        f"{name} was {info.versions[name]}, now {now[name]}"
        for name in ("torch", "megatron-core")
        if name in info.versions and info.versions[name] != now[name]
    ]
    if changed:
        log.warning("%s: training continues with other software, so its last digits may differ: %s", folder, "; ".join(changed))


def _comparable(recipe: dict[str, Any], steps: int) -> tuple[dict[str, Any], list[float]]:
    """A recipe as it is compared, and the learning rates of its first `steps` steps.

    The rates replace the schedule and the number of steps, which affect nothing else. Settings that were added after the recipe
    was written get their defaults.
    """
    rest = dict(recipe)
    schedule, total_steps = convert(rest.pop("schedule"), ScheduleConfig), rest.pop("total_steps")
    optimizer = convert(rest["optimizer"], OptimizerConfig)
    rest["optimizer"] = msgspec.to_builtins(optimizer)
    if guard := rest.get("spike_guard"):
        rest["spike_guard"] = msgspec.to_builtins(convert(guard, SpikeGuard))
    return rest, [learning_rate(step, total_steps, optimizer, schedule) for step in range(steps)]


def _refuse(folder: Path, what: str, phrases: list[str]) -> None:
    if phrases:
        shown = "; ".join(phrases[:4]) + (f"; and {len(phrases) - 4} more" if len(phrases) > 4 else "")
        raise UserError(f"{folder}: {what} ({shown}); undo the change, or train in a new run folder")
