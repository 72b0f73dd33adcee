"""Settings: immutable structs whose constraints always hold, and YAML files read into them.

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
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml

from curricula.core_yaml import MOST_CHARACTERS, load_yaml
from curricula.errors import StorageError, UsageError
from curricula.secrets import SECRET, without_userinfo

SHOWN_CHARACTERS = 60
"""Of a value, in an error message."""

FINITE = sys.float_info.max
"""Upper bound of numbers that must not be infinite."""

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0, le=FINITE)]
NonNegativeNumber = Annotated[float, msgspec.Meta(ge=0, le=FINITE)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

Struct = TypeVar("Struct", bound=msgspec.Struct)
Kind = TypeVar("Kind")

_CONVERTING = threading.RLock()
"""msgspec collects a struct's fields on first use. A thread that converts the same struct meanwhile sees only some of them, and
the process dies of a segmentation fault (msgspec 0.22). Reentrant, since a check may convert further values."""


def convert(value: Any, kind: type[Kind], strict: bool = True) -> Kind:
    """`msgspec.convert`, safe in threads."""
    with _CONVERTING:
        return msgspec.convert(value, kind, strict=strict)


def decode(text: bytes | str, kind: type[Kind]) -> Kind:
    """JSON as a `kind`: `msgspec.json.decode`, safe in threads."""
    with _CONVERTING:
        return msgspec.json.decode(text, type=kind)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group of settings. An unknown key is an error.

    The fields' types and constraints hold for objects made in Python as for those read from a file. A subclass overrides
    `check` for conditions on several fields together.
    """

    def __post_init__(self) -> None:
        for name, kind in _field_types(type(self)).items():
            value = getattr(self, name)
            try:
                convert(value, kind)
            except msgspec.ValidationError as error:
                raise ValueError(f"{name} is {value!r}: {_readable(str(error))}") from None
        self.check()

    def check(self) -> None:
        """Raise ValueError when fields contradict each other, in one sentence with the values and what to write instead."""

    def require_one(self, *names: str, or_none: bool = False) -> None:
        """Raise ValueError where several of the fields `names` are given, or, unless `or_none`, where none is."""
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one of them")
        if not given and not or_none:
            raise ValueError(f"give one of {', '.join(names[:-1])} and {names[-1]}")

    def allow_only_with(self, key: str, *names: str) -> None:
        """Raise ValueError where one of the fields `names` is not what it is by default, and the field `key` is not given."""
        if getattr(self, key) is None:
            self.require_default(names, f"with `{key}`")

    def require_default(self, names: Iterable[str], otherwise: str) -> None:
        """Raise ValueError where one of the fields `names`, which have an effect only as `otherwise` says, is not what it is by
        default."""
        fields = {field.name: field for field in msgspec.structs.fields(self)}
        for name in names:
            field, value = fields[name], getattr(self, name)
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if value != default:
                raise ValueError(f"{name} is {value!r}, which has an effect only {otherwise}; leave it out")


@functools.cache
def _field_types(kind: type[Settings]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@contextlib.contextmanager
def located(key: str) -> Iterator[None]:
    """Have a ValueError begin with the key that it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}.{error}") from None


def require_distinct(key: str, values: Sequence[Any]) -> None:
    """Raise ValueError if `values`, which stand under `key`, hold one twice."""
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{key} {list(values)} repeats {repeated[0]!r}; give each once")


def require_known(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError if one of `names`, which stand under `key`, is not among the `known`."""
    for name in names:
        if name not in known:
            raise ValueError(f"{key} names {name!r}; choose from {', '.join(known)}")


def read_yaml(path: Path, missing: str) -> Any:
    """The plain value in a YAML file. Raises UsageError that names the file, with the words `missing` when there is none, and
    StorageError when its disk fails."""
    try:
        with open(path, encoding="utf-8") as file:
            return load_yaml(file.read(MOST_CHARACTERS + 1))
    except FileNotFoundError:
        raise UsageError(f"{path}: {missing}") from None
    except (IsADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({_reason(error)}); name a YAML file") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({_reason(error)}); try again when its disk answers") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def changed(raw: Any, change: str, where: str) -> Any:
    """A copy of `raw`, a plain value from a file, with one entry as `change` says: "a.b.0=VALUE", the value in YAML."""
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
    """A copy of `raw` with `value` at `keys`, where the last of them may be new; raises LookupError where they lead nowhere."""
    if not keys:
        return value
    first, *rest = keys
    if isinstance(raw, dict):
        return {**raw, first: replaced(raw.get(first, {}) if rest else None, rest, value)}
    if isinstance(raw, list | tuple) and first.isdecimal() and int(first) < len(raw):
        return [replaced(part, rest, value) if place == int(first) else part for place, part in enumerate(raw)]
    raise LookupError(f"the key {first!r} does not exist in {raw!r:.60}; give keys of the study with dots, such as a.b.c")


def differences(then: Any, now: Any, place: str = "") -> list[str]:
    """Where two plain values differ, a phrase for each place: "mix.web was 0.7, now 0.6"."""
    if isinstance(then, dict) and isinstance(now, dict):
        inner = [(f"{place}.{key}" if place else str(key), then.get(key), now.get(key)) for key in {**then, **now}]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        inner = [(f"{place}[{number}]", *pair) for number, pair in enumerate(zip(then, now))]
    else:
        return [] if then == now else [f"{place} was {_shortened(repr(then))}, now {_shortened(repr(now))}"]
    return [phrase for where, old, new in inner for phrase in differences(old, new, where)]


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def parse(raw: Any, kind: type[Struct], where: str) -> Struct:
    """A plain value as a `kind`. Raises UsageError that begins with `where` the value is from."""
    try:
        return convert(raw, kind, strict=False)
    except msgspec.ValidationError:
        raise UsageError(f"{where}: {_explained(raw, kind, [])}") from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"


def _explained(raw: Any, kind: Any, keys: list[str]) -> str:
    """Why `raw`, which stands at `keys`, is no `kind`: a sentence about the innermost part of it that is wrong, with the key as
    the user wrote it, the value found there, and what is known instead. Empty if `raw` is right."""
    try:
        convert(raw, kind, strict=False)
        return ""
    except msgspec.ValidationError as error:
        text = _readable(str(error)).partition(" - at `")[0]
    for key, part, its_kind in _parts(raw, kind):
        if sentence := _explained(part, its_kind, [*keys, *key]):
            return sentence
    place = ".".join(keys) or f"the {kind.__name__.removesuffix('Config').lower()}"
    if unknown := re.search(r"unknown field `(.*)`", text):
        known = [name for struct in _meant(kind, raw) for name in struct.__struct_encode_fields__]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys are {', '.join(known) or 'none'}"
        return f"{place}: unknown key `{unknown[1]}`; {hint}"
    if missing := re.search(r"missing required field `(.*)`", text):
        return f"{place}: the key `{missing[1]}` is missing; add it"
    if text.startswith("Invalid enum"):
        choices = [str(value) for one in _alternatives(kind) if get_origin(one) is Literal for value in get_args(one)]
        return f"{place}: {_shown(raw, keys)} is not known; choose one of {', '.join(sorted(choices))}"
    if text.startswith("Invalid value"):  # of the key that tells kinds of a struct apart
        tags = {struct.__struct_config__.tag: struct.__struct_config__.tag_field for struct in _structs(kind)}
        field = next(iter(tags.values()))
        return f"{place}.{field}: {_shown(raw[field], keys)} is not known; choose one of {', '.join(tags)}"
    if text.startswith("Expected"):
        # Without a key the value is the whole file, which may be one of secrets, named by mistake.
        found = f"; it is {_shown(raw, keys)}" if keys else ""
        return f"{place}: {text[0].lower() + text[1:]}{found}"
    return f"{place}: {text}" if keys else text


def _parts(raw: Any, kind: Any) -> Iterator[tuple[list[str], Any, Any]]:
    """The values within `raw`, and the keys of a mapping: each with its own key, and the type that it has in a `kind`."""
    for struct in _structs(kind) if isinstance(raw, dict) else ():
        field = struct.__struct_config__.tag_field  # of the key that tells kinds of a struct apart
        if field in raw:
            yield [field], raw[field], str
    for struct in _meant(kind, raw):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        yield from (([key], value, fields[key]) for key, value in raw.items() if key in fields)
    for one in _alternatives(kind):
        types = get_args(one)
        if get_origin(one) is dict and isinstance(raw, dict):
            for key, value in raw.items():
                yield [], key, types[0]
                yield [str(key)], value, types[1]
        if get_origin(one) in (list, tuple) and isinstance(raw, list | tuple):
            each = types[:1] * len(raw) if get_origin(one) is list or types[-1] is ... else types
            yield from (([str(place)], *pair) for place, pair in enumerate(zip(raw, each)))


def _structs(kind: Any) -> list[Any]:
    """The structs among the types that `kind` allows."""
    return [one for one in _alternatives(kind) if hasattr(one, "__struct_config__")]


def _meant(kind: Any, raw: Any) -> list[Any]:
    """Of these structs the one that the mapping `raw` is meant as: where there are several, it says so itself."""
    structs = _structs(kind) if isinstance(raw, dict) else []
    configs = [struct.__struct_config__ for struct in structs]
    return [one for one, its in zip(structs, configs) if len(structs) == 1 or raw.get(its.tag_field) == its.tag]


def _alternatives(kind: Any) -> list[Any]:
    """The types that `kind` allows, without their constraints."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) for one in _alternatives(part)]
    return [kind]


def _shown(value: Any, keys: list[str]) -> str:
    """The value at `keys`, shortened to fit into a message."""
    if any(key.isupper() and SECRET.search(key) for key in keys):  # a variable within `environment`
        return "hidden"
    return _shortened(without_userinfo(repr(value)))


def _readable(message: str) -> str:
    return message.replace(f"Expected `float` <= {FINITE!r}", "Expected a finite `float`")
