"""Nothing in a checkpoint runs, whoever wrote it: its hashes are made anew here after each change."""

import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from random_batches import RandomBatches, train_job
from torch.distributed.checkpoint import metadata as dcp_metadata

from curricula.curriculum.tokens.tokenizer import train_tokenizer
from curricula.errors import UserError
from curricula.model.checkpoints import checkpoint
from curricula.model.checkpoints.folder import INFO_FILE, latest_checkpoint, read_info, stored_file
from curricula.model.checkpoints.read_as_data import check_layer_states
from curricula.model.convert import export_hf
from curricula.model.train import train


class Command:
    """Pickled, it is a call of os.system."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    train(train_job(out, stop_step=4), RandomBatches())
    return out


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def hash_again(folder: Path) -> None:
    names = [path.name for path in folder.iterdir() if path.name != INFO_FILE]
    record = json.loads((folder / INFO_FILE).read_text())
    record["files"] = {name: msgspec.to_builtins(stored_file(folder / name)) for name in names}
    (folder / INFO_FILE).write_text(json.dumps(record))


def command_in_metadata(folder: Path, mark: Path) -> str:
    metadata = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301
    metadata.planner_data = Command(mark)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return ".metadata"


def command_in_common(folder: Path, mark: Path) -> str:
    torch.save({"optimizer": Command(mark)}, folder / "common.pt")
    return "common.pt"


def command_in_objects(folder: Path, mark: Path) -> str:
    """In place of every object beside the tensors: the states of random generators and of layers."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301
    content = io.BytesIO()
    torch.save(Command(mark), content)
    for index, info in metadata.storage_data.items():
        is_object = type(metadata.state_dict_metadata[index.fqn]).__name__ == "BytesStorageMetadata"
        if is_object and not index.fqn.startswith("common_state"):  # there Megatron-core 0.19 has what is in common.pt
            with open(folder / info.relative_path, "ab") as file:
                info.offset, info.length = file.tell(), file.write(content.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return "__0_0.distcp"


def resume(run: Path, folder: Path, tmp_path: Path) -> None:
    train(train_job(run, stop_step=6), RandomBatches())


def begin_with_weights(run: Path, folder: Path, tmp_path: Path) -> None:
    train(train_job(tmp_path / "tuned", init_weights=folder, stop_step=1), RandomBatches())


def branch(run: Path, folder: Path, tmp_path: Path) -> None:
    train(train_job(tmp_path / "arm", init_from=folder, stop_step=5), RandomBatches())


def export(run: Path, folder: Path, tmp_path: Path) -> None:
    train_tokenizer(["a few words to make a tokenizer of"], 300, tmp_path / "tokenizer")
    export_hf(folder, tmp_path / "hf", tmp_path / "tokenizer", {})


@pytest.mark.parametrize("use", [resume, begin_with_weights, branch, export])
@pytest.mark.parametrize("plant", [command_in_metadata, command_in_common, command_in_objects])
def test_no_code_from_a_checkpoint_is_run(run, tmp_path, monkeypatch, plant, use):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / "ran"
    folder = latest_checkpoint(run / "checkpoints")
    name = plant(folder, mark)
    hash_again(folder)
    if plant is command_in_objects and use in (begin_with_weights, export):  # they read tensors alone
        use(run, folder, tmp_path)
        assert not mark.exists()
        return
    with pytest.raises(UserError) as refused:
        use(run, folder, tmp_path)
    assert not mark.exists()
    assert f"{folder / name}: names posix.system, " in str(refused.value) and "\n" not in str(refused.value)


def test_a_checkpoint_reads_no_file_outside_its_folder(run, tmp_path):
    folder = latest_checkpoint(run / "checkpoints")
    metadata = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301
    next(iter(metadata.storage_data.values())).relative_path = "../../elsewhere"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    hash_again(folder)
    with pytest.raises(UserError, match=r"\.metadata: names the file '../../elsewhere', which is outside"):
        resume(run, folder, tmp_path)


def test_metadata_that_is_no_pickle_is_refused_in_a_sentence(run, tmp_path):
    folder = latest_checkpoint(run / "checkpoints")
    (folder / ".metadata").write_bytes(b"\x80\x04]junk")
    hash_again(folder)
    with pytest.raises(UserError, match=r"\.metadata: cannot be read"):
        resume(run, folder, tmp_path)


def test_a_checkpoint_that_names_its_path_as_python_3_13_does_is_read(run, tmp_path):
    folder = latest_checkpoint(run / "checkpoints")
    metadata = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301
    metadata.storage_meta.checkpoint_id = Path("/somewhere")
    pickled = pickle.dumps(metadata, protocol=2)
    (folder / ".metadata").write_bytes(pickled.replace(b"cpathlib\nPosixPath\n", b"cpathlib._local\nPosixPath\n"))
    hash_again(folder)
    resume(run, folder, tmp_path)
    assert read_info(latest_checkpoint(run / "checkpoints")).step == 6


@pytest.mark.parametrize("name", ["TORCH_CONTIGUOUS_FORMAT", "__subclasses__"])
def test_members_of_enumerations_are_read_as_python_3_11_2_writes_them_and_no_other_attributes(
    run, tmp_path, monkeypatch, name
):
    kind = dcp_metadata._MEM_FORMAT_ENCODING
    folder = latest_checkpoint(run / "checkpoints")
    metadata = pickle.loads((folder / ".metadata").read_bytes())  # noqa: S301
    monkeypatch.setattr(kind, "__reduce_ex__", lambda self, protocol: (getattr, (kind, name)))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    monkeypatch.undo()
    assert b"getattr" in (folder / ".metadata").read_bytes()
    hash_again(folder)
    if name in kind.__members__:
        resume(run, folder, tmp_path)
        assert read_info(latest_checkpoint(run / "checkpoints")).step == 6
    else:
        with pytest.raises(UserError, match="asks for the attribute '__subclasses__'"):
            resume(run, folder, tmp_path)


READERS = ("ctorch.storage\n_load_from_bytes\n", "cmegatron.core.safe_globals\nsafe_load_from_bytes\n")
"""How a pickle names what reads its tensors, without Megatron-core 0.19 and with it."""


def fp8_state(content: object, reader: str = READERS[0]) -> dict[str, torch.Tensor]:
    """As Transformer Engine stores it: a pickle in a tensor of bytes."""
    pickled = pickle.dumps(content, protocol=3)
    for name in READERS:
        pickled = pickled.replace(name.encode(), reader.encode())
    return {"layer._extra_state": torch.frombuffer(bytearray(pickled), dtype=torch.uint8)}


@pytest.mark.parametrize("reader", READERS, ids=["torch", "Megatron-core 0.19"])
def test_the_fp8_state_of_a_layer_is_read_as_data(tmp_path, reader):
    check_layer_states(tmp_path, {"layer._extra_state": torch.empty(0, dtype=torch.uint8), "layer.weight": None})
    check_layer_states(tmp_path, fp8_state({"scale_fwd": torch.ones(3), "extra_fp8_variables": {"a": (1, 2.0, "b")}}, reader))
    storage = SimpleNamespace(inner=b"")
    storage.inner = io.BytesIO()
    torch.save(Command(tmp_path / "ran"), storage.inner)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (storage.inner.getvalue(),)

    for content in (Command(tmp_path / "ran"), Nested()):
        ((name, state),) = fp8_state({"scale_fwd": content}, reader).items()
        for one_or_several in (state, [torch.empty(0), state]):
            with pytest.raises(UserError, match=r"layer._extra_state: names posix.system"):
                check_layer_states(tmp_path, {name: one_or_several})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [b"torch.load", b"os.float32"])
def test_a_state_may_also_name_the_data_types_of_torch_and_nothing_else(tmp_path, name):
    def check(name: bytes) -> None:
        pickled = bytearray(b"\x80\x03c" + name.replace(b".", b"\n") + b"\n.")
        check_layer_states(tmp_path, {"layer._extra_state": torch.frombuffer(pickled, dtype=torch.uint8)})

    check(b"torch.float32")
    with pytest.raises(UserError) as refused:
        check(name)
    assert f"layer._extra_state: names {name.decode()}, which no checkpoint needs" in str(refused.value)


@pytest.mark.parametrize("use", [resume, begin_with_weights])
def test_the_states_of_layers_are_checked_before_a_network_takes_them(run, tmp_path, monkeypatch, use):
    load = checkpoint.dist_checkpointing.load

    def load_with_fp8(*words, **options):
        loaded = load(*words, **options)
        return {**loaded, "model": {**loaded["model"], **fp8_state(Command(tmp_path / "ran"))}}

    monkeypatch.setattr(checkpoint.dist_checkpointing, "load", load_with_fp8)
    with pytest.raises(UserError, match=r"layer._extra_state: names posix.system"):
        use(run, latest_checkpoint(run / "checkpoints"), tmp_path)


@pytest.mark.parametrize(
    "pickled",
    [
        b"junk",
        b"\x80\x03cbuiltins\nbytes\n)R}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x03ctransformer_engine.common.recipe\nFormat\n.",
    ],
    ids=["no pickle", "attributes of bytes", "a package that is not here"],
)
def test_an_fp8_state_that_cannot_be_read_is_named(tmp_path, monkeypatch, pickled):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    with pytest.raises(UserError, match="layer._extra_state: cannot be read here"):
        check_layer_states(tmp_path, {"layer._extra_state": torch.frombuffer(bytearray(pickled), dtype=torch.uint8)})
