"""A classifier of unsafe text, in addition to the model that scores. A document's final score is the higher of the two.

- A local folder with a Hugging Face AutoModelForSequenceClassification of 6 classes, score 0 to 5, runs in this process.
  Code that comes with a model is never executed.
- A vLLM server serves such a classifier at /classify. The published one, locuslab/safety-classifier_gte-large-en-v1.5, runs
  only this way: transformers would need the model's own code for it, and vLLM has its architecture built in.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from curricula.curriculum.synthesis.kinds import SCORES
from curricula.endpoint import Endpoint
from curricula.errors import UserError, first_line


class ServedClassifier:
    """A classifier behind vLLM's /classify."""

    def __init__(self, endpoint: Endpoint, model: str):
        self._endpoint, self._model = endpoint, model

    async def scores(self, texts: list[str]) -> list[int]:
        """The most probable class of each text.

        Raises what Endpoint.classify raises, and UserError unless there are 6 classes.
        """
        rows = await self._endpoint.classify(self._model, texts)
        for probabilities in rows:
            if len(probabilities) != len(SCORES):
                raise _wrong_classes(f"classifier at {self._endpoint.host}", len(probabilities))
        return [max(SCORES, key=probabilities.__getitem__) for probabilities in rows]

    async def close(self) -> None:
        await self._endpoint.close()


class LocalClassifier:
    """A classifier in a local folder. It runs on the GPU if there is one and reads long texts window by window."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not (folder / "config.json").is_file():  # otherwise transformers could take the name for one on the hub
            raise UserError(
                f"{folder}: no config.json, so not a Hugging Face model; name a folder that has one, or a server's address"
            )
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{folder}: not a classifier that transformers can read without the model's own code "
                f"({first_line(error):.150}); serve it with vLLM and name the server's address"
            ) from None
        if self._model.config.num_labels != len(SCORES):
            raise _wrong_classes(str(folder), self._model.config.num_labels)
        if not self._tokenizer.is_fast:
            raise UserError(f"{folder}: its tokenizer cannot split long texts; put a tokenizer.json into the folder")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device).eval()
        places = getattr(self._model.config, "max_position_embeddings", 512)
        self._window = min(self._tokenizer.model_max_length, places)
        self._one_at_a_time = asyncio.Lock()

    async def scores(self, texts: list[str]) -> list[int]:
        """The most probable class of each text."""
        async with self._one_at_a_time:
            return await asyncio.to_thread(lambda: [self._score(text) for text in texts])

    async def close(self) -> None:
        """Nothing to close."""

    def _score(self, text: str) -> int:
        """The highest class of the text's windows."""
        import torch

        windows = self._tokenizer(
            text, truncation=True, max_length=self._window, return_overflowing_tokens=True, padding=True, return_tensors="pt"
        )
        windows.pop("overflow_to_sample_mapping", None)
        with torch.inference_mode():
            return int(self._model(**windows.to(self._device)).logits.argmax(-1).max())


Classifier = ServedClassifier | LocalClassifier


def _wrong_classes(where: str, count: int) -> UserError:
    return UserError(f"{where}: has {count} classes instead of the {len(SCORES)} scores 0 to 5; name another classifier")
