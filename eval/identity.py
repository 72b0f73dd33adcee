"""The hash that identifies a model, computed from its files and recorded by its export. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from curricula import durable

RECORD = "curricula.json"
"""Name of the file in an exported model's folder that holds its hash."""


def content_hash(path: Path) -> str:
    """Hash of what decides a model's outputs: weights, config, tokenizer and chat template. The folder's path is not in it."""
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = [path] if path.is_file() else [*(path / name for name in names), *weight_files(path)]
    digest = hashlib.sha256()
    for file_path in files:
        if file_path.is_file():
            digest.update(f"{file_path.name}\x00{file_path.stat().st_size}\x00".encode())
            with open(file_path, "rb") as file:
                for block in iter(lambda: file.read(1 << 22), b""):
                    digest.update(block)
    return digest.hexdigest()[:32]


def weight_files(folder: Path) -> list[Path]:
    names = sorted(durable.names_in(folder))
    plain = [folder / name for name in names if name.endswith(".safetensors")]
    return plain or [folder / name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]


def record_hash(folder: Path) -> None:
    """Record the hash of an exported model in its folder."""
    durable.write_json(folder / RECORD, {"content_hash": content_hash(folder)})


def recorded_hash(folder: Path) -> str:
    """The hash that the export of `folder` recorded; "" if there is none."""
    record = durable.read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    recorded = record.get("content_hash") if isinstance(record, dict) else None
    return recorded if isinstance(recorded, str) else ""
