"""Models under evaluation: Hugging Face causal language models, loaded without running any code of their own.

docs/decoding.md says how a model is named. This module knows how a prompt becomes token ids (raw for base models, chat template
for tuned ones), which ids end an answer and how the tag is spelled.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import os
import re
import resource
import signal
import tempfile
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from curricula.curriculum.sources.hub import download_model
from curricula.curriculum.tokens.chat import CHAT_TEMPLATE, TURN_END, TURN_START, PlainText
from curricula.curriculum.tokens.tokenizer import STOPS, TAG, import_gguf_tokenizer
from curricula.errors import UsageError, UserError, load_failure
from curricula.eval.identity import content_hash, weight_files
from curricula.eval.packed import pack_linears
from curricula.eval.rows import ModelKind, Precision
from curricula.packages import packaged_gguf
from curricula.terminal import one_line

log = logging.getLogger(__name__)

MARK = "\u2063TEXT\u2063"
"""Placeholder for a user's text, at which a rendered chat template is cut in two."""
_DAY = datetime(2024, 7, 26)
_CODES = (*"aAbBcdDeFhHIjmMpRSTuwxXyY", "-d", "-m", "-H", "-I")
_PARTS_OF_DATE = "".join(f".replace('%{code}', '{_DAY.strftime('%' + code)}')" for code in _CODES)
DATED = f"{{% macro strftime_now(format) %}}{{{{ format{_PARTS_OF_DATE} }}}}{{% endmacro %}}\n"
"""Prefix for a chat template that writes today's date, so that no answer depends on the day. Llama 3's templates have the same
date as their default."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
LONGEST_ADDITION = 1_000_000
"""Most characters that a chat template may add to a text."""
PATIENCE_S = 10
"""Seconds for which a child process may compute to render a template. A busy machine can make it wait much longer."""
MEMORY_BYTES = 2**30
"""Memory that this child process may use beyond what this process uses."""


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to decode, with its tokenizer's special tokens."""

    name: str
    folder: Path
    """The model's folder or GGUF file."""
    kind: ModelKind
    raw: bool
    """Whether the model gets prompts as they are, without a chat template."""
    step: int | None
    """Training step at which the model was taken; None for the end of training."""
    model: Any
    """A `transformers` causal language model in eval mode."""
    tokenizer: Any
    content_hash: str
    tag_id: int | None
    """Id of the tag; None if it is not one token of the tokenizer."""
    end_ids: tuple[int, ...]
    device: torch.device
    deterministic: bool = False
    """Whether answers must be the same to the last bit whatever is decoded in the same batch (`eval/decoding/batch.py`)."""

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def vocabulary(self) -> int:
        """Number of logits: the tokenizer's entries plus padding."""
        return int(self.model.get_output_embeddings().out_features)

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt with its answer.

        The decoders let each token attend to all earlier ones, so a model with sliding-window attention, such as the first
        Mistral models, gets no more tokens than fit into the window.
        """
        config = self.model.config
        window = None if getattr(config, "layer_types", None) else getattr(config, "sliding_window", None)
        return int(min(self.positions, window or math.inf))

    @property
    def positions(self) -> int:
        """Most tokens of a text.

        LongRoPE, as in Phi-3's long models, uses other frequencies for texts beyond a certain length. A cache would mix both,
        and a long text would change the short ones in its batch, so these models get short texts only.
        """
        config = self.model.config
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        longest = config.max_position_embeddings
        if rope.get("rope_type", rope.get("type")) == "longrope":
            short = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", longest)
            longest = min(longest, short)
        return int(longest)

    @property
    def precision(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def is_exact(self) -> bool:
        """Whether an answer hardly ever depends on the rest of its batch, so that keys omit what is computed `Together`."""
        return self.precision in ("float32", "float64")

    @property
    def row_fields(self) -> dict[str, Any]:
        """The fields of a row that identify its model."""
        return {"model": self.content_hash, "model_kind": self.kind, "step": self.step}

    @property
    def logit_dtype(self) -> torch.dtype:
        """Precision in which decoders compute: the model's own, but at least float32."""
        return torch.promote_types(self.model.dtype, torch.float32)

    def read(self, cache: Any, **inputs: Any) -> Any:
        """The model's forward pass with `cache`. The name of that argument depends on the version of transformers."""
        return self.model(**inputs, **{self.cache_argument: cache}, use_cache=True)

    def require_finite(self, values: torch.Tensor, what: str) -> None:
        """Raise UserError if `values`, which this model computed, hold NaN or infinity."""
        if not bool(values.isfinite().all()):
            raise UserError(f"{self.name}: gives {what} that are not numbers; did its training diverge?")

    def require_distribution(self, logits: torch.Tensor) -> None:
        """Raise UserError if logits [..., vocabulary] do not define a distribution. Single tokens can have -inf."""
        # The largest logit is NaN if any is, and -inf only if no token is possible.
        self.require_finite(logits.detach().amax(-1), "logits")

    @cached_property
    def cache_argument(self) -> str:
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"

    @cached_property
    def tag_spellings(self) -> tuple[tuple[int, ...], ...]:
        """The tag as token ids: a single id or, if the tokenizer splits the tag, its ids without and with a space before it."""
        if self.tag_id is not None:
            return ((self.tag_id,),)
        return tuple(dict.fromkeys(tuple(self.encode(text)) for text in (TAG, f" {TAG}")))

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """The tokens that the tokenizer itself puts before a text: none for SmolLM2, one for Llama, two for GLM."""
        bare, whole = self.encode("a"), self.tokenizer("a")["input_ids"]
        places = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
        return tuple(whole[: next(places, 0)])

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a prompt: `text` itself for a model of raw text, the rendered chat turn for a tuned one.

        Only the tokenizer and the template give special tokens; those that `text` quotes are read as plain text.
        """
        if self.raw:
            return self.raw_ids(text)
        if not self.plain_text.quotes(text):
            return self.encode(self.chat(text))
        opening, closing = self.around_turn()
        rendered = self.chat(text)
        if not (rendered.startswith(opening) and rendered.endswith(closing)):
            raise UserError(f"{self.name}: its chat template does more than put marks around a text; evaluate it as 'base'")
        return self.encode_turn(opening, rendered[len(opening) : len(rendered) - len(closing)], closing)

    def around_turn(self, before: str = "") -> tuple[str, str]:
        """What the chat template puts before and after a user's turn. `before` is text at the beginning of the turn."""
        parts = self.chat(f"{before}{MARK}").split(MARK)
        if len(parts) != 2:
            raise UserError(f"{self.name}: its chat template does not show the user's turn exactly once; evaluate it as 'base'")
        return parts[0], parts[1]

    def raw_ids(self, text: str) -> list[int]:
        return [*self.beginning, *self.encode_turn("", text, "")]

    def encode_turn(self, opening: str, text: str, closing: str) -> list[int]:
        """Token ids of the three parts as one text. Special tokens are recognised in `opening` and `closing` only."""
        if not self.plain_text.quotes(text):
            return self.encode(f"{opening}{text}{closing}")
        marks = self.plain_text.special
        start = max((mark.end() for mark in marks.finditer(opening)), default=0)
        end = mark.start() if (mark := marks.search(closing)) else len(closing)
        between = self.plain_text.encode(f"{opening[start:]}{text}{closing[:end]}").ids
        return [*self.encode(opening[:start]), *between, *self.encode(closing[end:])]

    @cached_property
    def plain_text(self) -> PlainText:
        return PlainText(self.tokenizer.backend_tokenizer)

    def chat(self, text: str) -> str:
        """`text` as the user's turn, and the opening of the assistant's turn; in ChatML if the tokenizer has no template."""
        template = getattr(self.tokenizer, "chat_template", None)
        if not template and not all(single_id(self.tokenizer, mark) is not None for mark in (TURN_START, TURN_END)):
            raise UserError(
                f"{self.name}: the tokenizer has no chat_template, which a model of kind '{self.kind}' needs, and no "
                f"{TURN_START} for ChatML; add a chat_template to tokenizer_config.json or evaluate it as 'base'"
            )
        return render_turns(self.tokenizer, template or CHAT_TEMPLATE, [{"role": "user", "content": text}], self.name)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @cached_property
    def before_part(self) -> str:
        """Text to put before a part of a text, so that the part is read as within the whole; "" if it is in any case.

        Llama 2's tokenizer puts a blank before every text, even one that begins with a blank, and drops it again when it
        decodes. Byte-level tokenizers that are set to do so put none before a part that has its own.
        """
        ids = self.encode(" a")
        is_within = [*self.encode("\n"), *ids] == self.encode("\n a")
        return "" if is_within and self._decoded([ids]) == [" a"] else "\n"

    def encode_part(self, text: str) -> list[int]:
        """Token ids of `text` within a longer text."""
        return self.encode(self.before_part + text)[len(self.encode(self.before_part)) :]

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of the beginning of an answer. After a raw prompt it has a space before it."""
        return self.encode_part(text) if text.startswith(" ") else self.encode(text)

    def decode_parts(self, parts: Sequence[Sequence[int]]) -> list[str]:
        """The text of each part of a longer text, special tokens included."""
        start = self.encode(self.before_part)
        before, *texts = self._decoded([start, *([*start, *ids] for ids in parts)])
        return [text.removeprefix(before) for text in texts]

    def _decoded(self, texts: Sequence[Sequence[int]]) -> list[str]:
        return self.tokenizer.batch_decode(texts, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def padded(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Token ids [texts, longest], padded on the right, where the causal mask hides the padding from every real token."""
        longest = max(map(len, texts))
        return torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in texts], device=self.device)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens, of which the tag is one."""
        shown = [i for i in ids if i != self.tag_id and i not in self.end_ids]
        return self.tokenizer.decode(shown, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def load_model(
    source: Path | str,
    kind: ModelKind,
    device: str | None = None,
    precision: Precision | None = None,
    raw: bool | None = None,
    step: int | None = None,
    deterministic: bool = False,
) -> LoadedModel:
    """Load the model that `source` names.

    `device` defaults to the GPU if there is one, `precision` to bfloat16 on a GPU and float32 on the CPU; only base models are
    `raw` by default.
    """
    if raw is None:
        raw = kind == "base"
    where = find_device(device)
    dtype: torch.dtype = getattr(torch, precision or ("bfloat16" if where.type == "cuda" else "float32"))
    path = locate(source)
    model, tokenizer = read_checkpoint(path, dtype)
    check_fit(source, model, tokenizer)
    if not raw and (template := getattr(tokenizer, "chat_template", None)):
        check_template(tokenizer, template, str(source))
        tokenizer.chat_template = (DATED if "strftime_now" in template else "") + template
    model = model.to(where).eval().requires_grad_(False)
    if where.type == "cpu":
        pack_linears(model)
    return LoadedModel(
        name=str(source),
        folder=path,
        kind=kind,
        raw=raw,
        step=step,
        model=model,
        tokenizer=tokenizer,
        content_hash=content_hash(path),
        tag_id=single_id(tokenizer, TAG),
        end_ids=end_ids(model, tokenizer),
        device=where,
        deterministic=deterministic,
    )


def find_device(name: str | None) -> torch.device:
    """The device `cpu`, `cuda` or, say, `cuda:1`; without a name, the GPU if there is one. Disables cuDNN's attention."""
    # Newer versions of torch prefer cuDNN's attention on some GPUs. It makes a plan for every new shape, so at each token.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    here = ["cpu", "cuda", *gpus] if gpus else ["cpu"]
    if name not in here:
        raise UsageError(f"device {name!r} is asked for, but this machine has {', '.join(here)}; give one of these, or none")
    return torch.device(name)


def locate(source: Path | str) -> Path:
    """The folder or GGUF file that `source` names; a model of the hub, OWNER/NAME or OWNER/NAME@REVISION, is downloaded."""
    name, path = str(source), Path(source)
    if path.exists():
        return path
    if packaged := packaged_gguf(name):
        return packaged
    if HUB_NAME.fullmatch(name):
        repository, _, revision = name.partition("@")
        wanted = ["*.json", "*.safetensors", "*.bin", "*.jinja", "*.model"]
        return download_model(f"model {name}, which is not a folder here", repository, revision or None, wanted)
    raise UserError(
        f"{name}: no such folder, no installed package that carries a model, and no hub name such as "
        "locuslab/safelm-1.7b; check the spelling"
    )


def read_checkpoint(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a folder or GGUF file, as `transformers` loads them."""
    if path.suffix == ".gguf":
        return read_gguf(path, dtype)
    there = {name: (path / name).is_file() for name in ("config.json", "tokenizer.json")}
    there["*.safetensors or pytorch_model*.bin"] = bool(weight_files(path))
    if missing := [name for name, is_there in there.items() if not is_there]:
        raise UserError(f"{path}: no {missing[0]}; name a .gguf file or the whole folder of a Hugging Face checkpoint")
    try:
        for file in weight_files(path):  # safetensors calls a file missing, whatever keeps it from being opened
            file.open("rb").close()
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model = read_weights(path, local_files_only=True, trust_remote_code=False, dtype=dtype, attn_implementation="sdpa")
    except Exception as error:  # a setting in config.json can fail anywhere in a model's code, in any way
        raise load_failure(error)(
            f"{path}: cannot be loaded ({type(error).__name__}: {one_line(str(error), 200)}); check its config.json, or export "
            "the model again"
        ) from error
    return model, tokenizer


def read_gguf(file: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file of SmolLM2, with its weights expanded and a reserved entry turned into the tag.

    The tokenizer that `transformers` reads from such a file takes `<|im_start|>` for the end of a text and does not split
    digits; `import_gguf_tokenizer` corrects both.
    """
    try:
        with tempfile.TemporaryDirectory() as aside:
            import_gguf_tokenizer(file, Path(aside))
            tokenizer = AutoTokenizer.from_pretrained(aside, local_files_only=True, trust_remote_code=False)
        model = read_weights(file.parent, gguf_file=file.name, local_files_only=True, dtype=dtype, attn_implementation="sdpa")
        import gguf

        packed = {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors} - {"F64", "F32", "F16", "BF16"}
    except ImportError as error:
        raise UserError(
            f"{file}: GGUF files need `pip install safety-curricula[gguf]` ({one_line(str(error), 200)})"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise load_failure(error)(f"{file}: cannot be loaded ({one_line(str(error), 200)}); fetch the file again") from error
    if packed:
        types = ", ".join(sorted(packed))
        log.warning(
            "%s: holds quantised weights (%s), which are expanded; the unquantised model can answer differently", file, types
        )
    return model, tokenizer


def read_weights(pretrained_model_name_or_path: Path | str, **settings: Any) -> Any:
    """The causal language model that `transformers` reads from a folder or file.

    Raises ValueError if the files lack weights; `transformers` would draw these at random.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **settings)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"its files lack {len(missing)} tensors, {missing[0]} among them")
    return model


def check_fit(source: Path | str, model: Any, tokenizer: Any) -> None:
    """Raise UserError for a model that does not fit its tokenizer, or whose cache is not plain keys and values."""
    config, embeddings = model.config, model.get_input_embeddings().num_embeddings
    if trained_as := [name for name in config.architectures or () if re.search("MaskedLM|Classification", name)]:
        raise UserError(f"{source}: config.json says {trained_as[0]}, which is not a causal language model; name one that is")
    if not getattr(config, "is_causal", True):
        raise UserError(f"{source}: config.json sets is_causal to false, so tokens see what follows; name a causal model")
    if embeddings < len(tokenizer):
        raise UserError(
            f"{source}: the model has {embeddings} token embeddings, but its tokenizer has {len(tokenizer)} tokens; export the "
            "model with the tokenizer it was trained with"
        )
    if getattr(config, "max_position_embeddings", None) is None:
        raise UserError(f"{source}: config.json has no max_position_embeddings; add the length of the context")
    if other_layers := set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        raise UserError(
            f"{source}: has layers of kind {', '.join(sorted(other_layers))}; the decoders here support full attention only, "
            "as in Llama and SmolLM2"
        )
    if getattr(config, "alibi", False):  # Falcon's: computed from the cache's length, not from positions
        raise UserError(f"{source}: config.json has alibi, but the decoders here support rotary and learned positions only")


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer: end marks of documents and turns, and those that model and tokenizer name."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = [single_id(tokenizer, mark) for mark in STOPS]
    ids += named if isinstance(named, list) else [named]
    ids.append(tokenizer.eos_token_id)
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def single_id(tokenizer: Any, token: str) -> int | None:
    """The id of `token` if the tokenizer encodes it as one, else None."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    return ids[0] if tokenizer.convert_ids_to_tokens(ids) == [token] else None


def render_turns(tokenizer: Any, template: str, turns: list[dict[str, str]], name: str) -> str:
    """A conversation rendered by the template of the model `name` and, after a user's turn, the opening of the assistant's."""
    length, open_turn = sum(len(turn["content"]) for turn in turns), turns[-1]["role"] == "user"
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_turn, chat_template=template)
    except Exception as error:  # a template is a program: it can fail in any way
        raise _unusable(name, f"fails: {type(error).__name__}: {one_line(str(error), 160)}") from None
    if len(rendered) > length + LONGEST_ADDITION:
        raise _unusable(name, f"adds more than {LONGEST_ADDITION:,} characters to a text")
    return rendered


def check_template(tokenizer: Any, template: str, name: str) -> None:
    """Raise UserError for a chat template that cannot render a turn within limits of time and memory."""
    if not isinstance(template, str):
        raise _unusable(name, f"is a {type(template).__name__} instead of one text")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        _render_in_child(tokenizer, template, name, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        problem = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if status:
        raise UserError(problem) if problem else _unusable(name, f"needs more than {PATIENCE_S} s or {MEMORY_BYTES >> 30} GiB")


def _render_in_child(tokenizer: Any, template: str, name: str, writer: int) -> None:
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE_S, PATIENCE_S))
        signal.alarm(60 * PATIENCE_S)  # in case another thread held a lock at the fork
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit, hard = used + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
        render_turns(tokenizer, template, [{"role": "user", "content": "Hello"}], name)
        code = 0
    except UserError as error:
        os.write(writer, str(error).encode(errors="replace"))
    finally:  # without flushing the parent's buffers or running its exit handlers
        os._exit(code)


def _unusable(name: str, how: str) -> UserError:
    return UserError(f"{name}: its chat template {how}; correct chat_template in its folder, or evaluate it as 'base'")
