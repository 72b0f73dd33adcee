"""The ways of tokenising that tokenization.py compares, each run in a process of its own, datatrove's by another Python.

Every function takes a tokenizer folder, Parquet files, a folder to write to and a number of processes, and returns its seconds.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine

DATASET, END, SEED = "fineweb-edu", "<|endoftext|>", 1234


class Stopwatch:
    """Elapsed seconds, and the processor time of this process and of those that it waited for."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), sum(os.times()[:4])

    def taken(self) -> machine.Task:
        return {"s": time.perf_counter() - self._began, "cpu_s": sum(os.times()[:4]) - self._cpu}


def read_texts(files: list[str]) -> Iterator[str]:
    import pyarrow.parquet

    for file in files:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1024, columns=["text"]):
            yield from batch.column(0).to_pylist()


def load(tokenizer: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(f"{tokenizer}/tokenizer.json")


def raw(tokenizer: str, files: list[str], out: str, processes: int, batch_characters: int = 0) -> machine.Task:
    encoder = load(tokenizer)
    encode = encoder.encode_batch_fast if batch_characters else encoder.encode_batch
    return _measured(
        files, lambda texts: sum(len(each.ids) for each in encode(texts, add_special_tokens=False)), batch_characters
    )


def fastokens(tokenizer: str, files: list[str], out: str, processes: int) -> machine.Task:
    """As our encoder calls it: ids alone, on RAYON_NUM_THREADS threads."""
    from fastokens import Tokenizer

    encoder = Tokenizer.from_file(f"{tokenizer}/tokenizer.json")
    return _measured(files, lambda texts: len(encoder.encode_batch_flat(texts, False, True)[0]) // 4, 1 << 20)


def _measured(files: list[str], count_tokens: Callable[[list[str]], int], batch_characters: int) -> machine.Task:
    """The time for texts in memory, in batches of so many characters, or all at once."""
    texts = list(read_texts(files))
    batches, size = [[]], 0  # type: ignore[var-annotated]
    for text in texts:
        batches[-1].append(text)
        size += len(text)
        if batch_characters and size >= batch_characters:
            batches.append([])
            size = 0
    count_tokens(["warm up"])
    tokens, total = 0, {"s": 0.0, "cpu_s": 0.0}
    for batch in batches:
        began = Stopwatch()
        tokens += count_tokens(batch)
        total = {name: value + total[name] for name, value in began.taken().items()}
    return {**total, "tokens": tokens + len(texts)}


def ours(tokenizer: str, files: list[str], out: str, processes: int) -> machine.Task:
    from curricula.curriculum.config import Source
    from curricula.curriculum.tokens.tokenize import Tokenization, tokenize_shard

    source = Source(dataset=DATASET, shards=processes)
    work = Tokenization(
        name="web",
        source=source,
        tokenizer=Path(tokenizer),
        folder=Path(out),
        data_root=Path(files[0]).parents[2],
        seed=SEED,
        validation_documents=0,
    )
    import pyarrow.parquet  # noqa: F401  (an import, which otherwise happens inside)

    context = multiprocessing.get_context("fork")
    began = Stopwatch()
    if processes == 1:
        tokenize_shard(work, "00000")
    else:
        workers = [context.Process(target=tokenize_shard, args=(work, f"{shard:05d}")) for shard in range(processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
    return began.taken()


def _builder(encoder: Any, out: str) -> tuple[Any, Callable[[], None]]:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{out}/web.bin", dtype=DType.optimal_dtype(encoder.get_vocab_size()))
    return builder, lambda: builder.finalize(f"{out}/web.idx")


def megatron(tokenizer: str, files: list[str], out: str, processes: int) -> machine.Task:
    import pyarrow.parquet  # noqa: F401
    from megatron.core.datasets import indexed_dataset  # noqa: F401

    began = Stopwatch()
    encoder = load(tokenizer)
    end = encoder.token_to_id(END)
    builder, finalize = _builder(encoder, out)
    texts = read_texts(files)
    while batch := [text for _, text in zip(range(1000), texts)]:
        for encoded in encoder.encode_batch(batch, add_special_tokens=False):
            ids = encoded.ids
            ids.append(end)
            builder.add_document(ids, [len(ids)])
    finalize()
    return began.taken()


class Encoder:
    """As in Megatron's script: made in each process of the pool, asked for one document at a time."""

    tokenizer: Any = None
    end = 0

    @classmethod
    def initialise(cls, tokenizer: str) -> None:
        cls.tokenizer = load(tokenizer)
        cls.end = cls.tokenizer.token_to_id(END)

    @classmethod
    def encode(cls, text: str) -> tuple[list[int], list[int]]:
        ids = cls.tokenizer.encode(text, add_special_tokens=False).ids
        ids.append(cls.end)
        return ids, [len(ids)]


def megatron_pool(tokenizer: str, files: list[str], out: str, processes: int) -> machine.Task:
    import pyarrow.parquet  # noqa: F401
    from megatron.core.datasets import indexed_dataset  # noqa: F401

    began = Stopwatch()
    with multiprocessing.get_context("fork").Pool(processes, Encoder.initialise, (tokenizer,)) as pool:
        builder, finalize = _builder(load(tokenizer), out)
        for ids, lengths in pool.imap(Encoder.encode, read_texts(files), 32):
            builder.add_document(ids, lengths)
        finalize()
    return began.taken()


def datatrove(tokenizer: str, files: list[str], out: str, processes: int) -> machine.Task:
    import pyarrow.parquet  # noqa: F401
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens.megatron_tokenizer import MegatronDocumentTokenizer

    reader = ParquetReader(str(Path(files[0]).parent))
    writer = MegatronDocumentTokenizer(out, tokenizer_name_or_path=f"{tokenizer}/tokenizer.json", eos_token=END)
    options = {"tasks": processes, "workers": processes, "logging_dir": f"{out}/logs", "start_method": "fork"}
    executor = LocalPipelineExecutor(pipeline=[reader, writer], **options)
    began = Stopwatch()
    executor.run()
    return began.taken()


MEASURES: dict[str, Callable[..., machine.Task]] = {
    "raw": raw,
    "raw_fast": functools.partial(raw, batch_characters=1 << 20),
    "fastokens": fastokens,
    "ours": ours,
    "megatron": megatron,
    "megatron_pool": megatron_pool,
    "datatrove": datatrove,
}


if __name__ == "__main__" and not machine.serve_child(MEASURES):
    sys.exit("run tokenization.py instead")
