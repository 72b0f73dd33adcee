"""Settings: immutable structs whose constraints always hold. They can be read from YAML files.

    class Training(Settings, frozen=True):
        global_batch: Positive
        lr: PositiveNumber = 2e-5

    training = parse(read_yaml(path, "no such file"), Training, str(path))

An error names the file, the key, its value and what to write instead.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import yaml

from curricula.core_yaml import MOST_CHARACTERS, load_yaml
from curricula.errors import StorageError, UsageError
from curricula.secrets import SECRET, without_userinfo

SHOWN_CHARACTERS = 60
"""Length to which error messages shorten a value."""

FINITE = sys.float_info.max
"""Upper bound for numbers that must be finite."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0, le=FINITE)]
NonNegativeNumber = Annotated[float, msgspec.Meta(ge=0, le=FINITE)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

Struct = TypeVar("Struct", bound=msgspec.Struct)
Kind = TypeVar("Kind")

_CONVERTING = threading.RLock()
"""Held during every conversion. msgspec 0.22 collects a struct's fields on first use; a thread that converts the same struct
meanwhile sees only some of them, and the process dies of a segmentation fault. The lock is reentrant, since a check can convert
further values."""


def convert(value: Any, kind: type[Kind], strict: bool = True) -> Kind:
    """`msgspec.convert`, made thread-safe."""
    with _CONVERTING:
        return msgspec.convert(value, kind, strict=strict)


def decode(text: bytes | str, kind: type[Kind]) -> Kind:
    """Decode JSON as a `kind`: `msgspec.json.decode`, made thread-safe."""
    with _CONVERTING:
        return msgspec.json.decode(text, type=kind)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group of settings. An unknown key is an error.

    The fields' types and constraints are checked whether an object is made in Python or read from a file. A subclass overrides
    `check` for conditions on several fields together.
    """

    def __post_init__(self) -> None:
        for name, field in _fields(type(self)).items():
            value = getattr(self, name)
            try:
                convert(value, field.type)
            except msgspec.ValidationError as error:
                raise ValueError(f"{name} is {value!r}: {_readable(str(error))}") from None
        self.check()

    def check(self) -> None:
        """Raise ValueError if fields contradict each other, with a sentence that gives the values and what to write instead."""

    def require_one(self, *names: str, or_none: bool = False) -> None:
        """Raise ValueError if more than one of the fields `names` is given, or none is (unless `or_none`)."""
        present = [name for name in names if getattr(self, name) is not None]
        if len(present) > 1:
            raise ValueError(f"{' and '.join(present)} exclude each other; keep one of them")
        if not present and not or_none:
            raise ValueError(f"give {', '.join(names[:-1])} or {names[-1]}")

    def allow_only_with(self, key: str, *names: str) -> None:
        """Raise ValueError if one of the fields `names` differs from its default although the field `key` is not given."""
        if getattr(self, key) is None:
            self.require_default(names, f"with `{key}`")

    def require_default(self, names: Iterable[str], condition: str) -> None:
        """Raise ValueError if one of the fields `names` differs from its default. `condition` says when they have an effect."""
        for name in names:
            field, value = _fields(type(self))[name], getattr(self, name)
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if value != default:
                raise ValueError(f"{name} is {in_yaml(value)}, which has an effect only {condition}; leave it out")


@functools.cache
def _fields(kind: type[Settings]) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields by name, cached because msgspec evaluates all annotations at each call."""
    return {field.name: field for field in msgspec.structs.fields(kind)}


@contextlib.contextmanager
def located(key: str) -> Iterator[None]:
    """Prefix the message of a ValueError with the key that it concerns."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


def require_distinct(key: str, values: Sequence[Any]) -> None:
    """Raise ValueError if a value occurs twice in `values`, the list under `key`."""
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{key} {list(values)} repeats {repeated[0]!r}; give each once")


def require_known(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError if one of `names`, the list under `key`, is not `known`."""
    for name in names:
        if name not in known:
            raise ValueError(f"{key} names {name!r}; choose from {', '.join(known)}")


def read_yaml(path: Path, missing: str) -> Any:
    """The plain value in a YAML file.

    Raises UsageError if the file is missing (the message then ends with `missing`), unreadable or not valid YAML, and
    StorageError if its disk fails.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return load_yaml(file.read(MOST_CHARACTERS + 1))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: {missing}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: cannot be read (it is not UTF-8 text); name a YAML file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); name a YAML file") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror}); try again when its disk answers") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def changed(raw: Any, change: str, where: str) -> Any:
    """A copy of `raw`, a plain value from a file, with one entry changed. `change` is "a.b.0=VALUE", with the value in YAML.

    Raises UsageError that begins with `where`.
    """
    key, is_set, text = change.partition("=")
    if not is_set or not all(key.split(".")):
        raise UsageError(f"{where}: not KEY=VALUE, such as optimizer.lr=3e-4")
    try:
        return replaced(raw, key.split("."), load_yaml(text))
    except LookupError as error:
        raise UsageError(f"{where}: {error.args[0]}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def replaced(raw: Any, keys: list[str], value: Any) -> Any:
    """A copy of `raw` with `value` at `keys`. Keys of mappings can be new; raises LookupError if any other does not exist."""
    if not keys:
        return value
    first, *rest = keys
    if isinstance(raw, dict):
        return {**raw, first: replaced(raw.get(first, {}) if rest else None, rest, value)}
    if isinstance(raw, list | tuple) and first in map(str, range(len(raw))):
        return [replaced(part, rest, value) if str(place) == first else part for place, part in enumerate(raw)]
    raise LookupError(f"the key {first!r} does not exist in {raw!r:.60}; give keys of the study with dots, such as a.b.c")


def differences(then: Any, now: Any, place: str = "") -> list[str]:
    """One phrase for each place where two plain values differ, such as "mix.web was 0.7, now 0.6"."""
    if isinstance(then, dict) and isinstance(now, dict):
        inner = [(f"{place}.{key}" if place else str(key), then.get(key), now.get(key)) for key in {**then, **now}]
    elif isinstance(then, list | tuple) and isinstance(now, list | tuple) and len(then) == len(now):
        inner = [(f"{place}[{number}]", *pair) for number, pair in enumerate(zip(then, now))]
    else:
        return [] if then == now else [f"{place} was {in_yaml(then)}, now {in_yaml(now)}"]
    return [phrase for where, old, new in inner for phrase in differences(old, new, where)]


def in_yaml(value: Any) -> str:
    """A plain value for a message: on one line, as a study file could hold it, shortened, and without passwords of URLs."""
    text = repr(value) if isinstance(value, str | float) else json.dumps(value, ensure_ascii=False, default=str)
    text = without_userinfo(text)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def parse(raw: Any, kind: type[Struct], where: str) -> Struct:
    """Convert a plain value to a `kind`. Raises UsageError that begins with `where`, the value's origin."""
    try:
        return convert(raw, kind, strict=False)
    except msgspec.ValidationError:
        raise UsageError(f"{where}: {_explained(raw, kind, [])}") from None


def _explained(raw: Any, kind: Any, keys: list[str]) -> str:
    """The innermost reason why `raw`, the value at `keys`, is not a `kind`; empty if it is one."""
    try:
        convert(raw, kind, strict=False)
        return ""
    except msgspec.ValidationError as error:
        text = _readable(str(error)).partition(" - at `")[0]
    for key, part, part_kind in _parts(raw, kind):
        if sentence := _explained(part, part_kind, [*keys, *key]):
            return sentence
    return _explanation(text, raw, kind, keys)


def _explanation(text: str, raw: Any, kind: Any, keys: list[str]) -> str:
    """The sentence for msgspec's complaint `text` about `raw` itself, the value at `keys`."""
    place = ".".join(keys) or f"the {kind.__name__.removesuffix('Config').lower()}"
    if raw is None and not keys:
        return f"{place} is empty; write its keys, one `key: value` a line"
    for key, value in raw.items() if isinstance(raw, dict) else ():
        if value is None and re.fullmatch(r"\w+:.+", key):  # {kind:sft} is a key without a value
            return f"{place}: unknown key `{key}`; write a blank after its colon"
    if unknown := re.search(r"unknown field `(.*)`", text):
        known = [name for struct in _meant(kind, raw) for name in struct.__struct_encode_fields__]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys are {', '.join(known) or 'none'}"
        return f"{place}: unknown key `{unknown[1]}`; {hint}"
    if missing := re.search(r"missing required field `(.*)`", text):
        return f"{place}: the key `{missing[1]}` is missing; add it"
    if text.startswith("Invalid enum"):
        literals = [option for option in _alternatives(kind) if get_origin(option) is Literal]
        choices = [str(value) for literal in literals for value in get_args(literal)]
        return f"{place}: {_shown(raw, keys)} is not known; choose one of {', '.join(sorted(choices))}"
    if text.startswith("Invalid value"):  # of the key that distinguishes the structs of a union
        tags = {struct.__struct_config__.tag: struct.__struct_config__.tag_field for struct in _structs(kind)}
        field = next(iter(tags.values()))
        return f"{place}.{field}: {_shown(raw[field], keys)} is not known; choose one of {', '.join(tags)}"
    if text.startswith("Expected"):
        # Without a key the value is the whole file. It is not shown: the user may have named a file of secrets by mistake.
        found = f"; it is {_shown(raw, keys)}" if keys else ""
        return f"{place}: {text[0].lower() + text[1:]}{found}"
    return f"{place}: {text}" if keys else text


def _parts(raw: Any, kind: Any) -> Iterator[tuple[list[str], Any, Any]]:
    """The parts of `raw`: its values and, for mappings, the keys. Each comes with its own key and its type in a `kind`."""
    for struct in _structs(kind) if isinstance(raw, dict) else ():
        field = struct.__struct_config__.tag_field  # the key that distinguishes the structs of a union
        if field in raw:
            yield [field], raw[field], str
    for struct in _meant(kind, raw):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        yield from (([key], value, fields[key]) for key, value in raw.items() if key in fields)
    for option in _alternatives(kind):
        origin, types = get_origin(option), get_args(option)
        if origin is dict and isinstance(raw, dict):
            for key, value in raw.items():
                yield [], key, types[0]
                yield [str(key)], value, types[1]
        if origin in (list, tuple) and isinstance(raw, list | tuple):
            each = types[:1] * len(raw) if origin is list or types[-1] is ... else types
            yield from (([str(place)], *pair) for place, pair in enumerate(zip(raw, each)))


def _structs(kind: Any) -> list[Any]:
    """The structs among the types that `kind` allows."""
    return [option for option in _alternatives(kind) if hasattr(option, "__struct_config__")]


def _meant(kind: Any, raw: Any) -> list[Any]:
    """The struct that the mapping `raw` is meant as: the only one that `kind` allows, or the one whose tag `raw` holds."""
    structs = _structs(kind) if isinstance(raw, dict) else []
    if len(structs) == 1:
        return structs
    configs = [struct.__struct_config__ for struct in structs]
    return [struct for struct, config in zip(structs, configs) if raw.get(config.tag_field) == config.tag]


def _alternatives(kind: Any) -> list[Any]:
    """The types that `kind` allows, without their constraints."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [option for part in get_args(kind) for option in _alternatives(part)]
    return [kind]


def _shown(value: Any, keys: list[str]) -> str:
    """The value at `keys`, shortened to fit into a message; "hidden" if its key looks like a secret's."""
    if any(key.isupper() and SECRET.search(key) for key in keys):  # a variable within `environment`
        return "hidden"
    return in_yaml(value)


def _readable(message: str) -> str:
    """msgspec's complaint, with types called as YAML calls them, not JSON."""
    if message.startswith("Expected"):  # others quote keys
        message = re.sub(r"\bobject\b", "mapping", re.sub(r"\barray\b", "list", message))
    return message.replace(f"Expected `float` <= {FINITE!r}", "Expected a finite `float`")
