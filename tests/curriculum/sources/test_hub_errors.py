"""What the errors of the hub's libraries mean."""

from __future__ import annotations

import errno

import pytest
import requests

from curricula.curriculum.sources.hub import Download, HubAway, download_model, fetch, require_whole
from curricula.durable import write_json
from curricula.errors import StorageError, UserError


def test_a_hub_in_trouble_is_not_said_to_be_out_of_reach(monkeypatch, tmp_path):
    """Earlier versions of the hub's library raise errors of `requests`, where a refusal is of the kind of a lost connection."""
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        response = requests.Response()  # of a refusal, which is falsy
        response.status_code = 503
        raise requests.HTTPError("Service Unavailable", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    download = Download("org/small", "a", "train", None, (), tmp_path / "out", "MIT")
    with pytest.raises(HubAway, match="^dataset org/small: the hub answers 503; try again later$"):
        fetch(download)


def test_a_disk_that_is_full_after_a_connection_broke_off_is_not_the_hubs_fault(monkeypatch, tmp_path):
    import huggingface_hub

    def fill(*_: object, **__: object) -> None:
        try:
            raise ConnectionError
        except ConnectionError:  # huggingface_hub goes on with a transfer in such a block
            raise OSError(errno.ENOSPC, "No space left on device")  # noqa: B904

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fill)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fill)
    with pytest.raises(StorageError, match="out: no space left"):
        fetch(Download("org/x", "a", "train", None, (), tmp_path / "out", "MIT"))
    with pytest.raises(StorageError, match="hub: no space left"):
        download_model("model org/x", "org/x", None, [])


def test_a_record_of_a_finished_fetch_that_does_not_name_its_files_is_damaged(tmp_path):
    begun = {"hub": "org/x", "config": None, "split": "train", "asked": None, "columns": [], "constants": {}, "limit": None}
    write_json(tmp_path / ".fetched.json", {**begun, "revision": "0" * 40, "licence": "MIT", "files": 1})
    with pytest.raises(UserError, match="damaged record of a fetch"):
        require_whole(tmp_path, None)
