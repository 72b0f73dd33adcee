"""Reads untrusted YAML, with the types of YAML 1.2's core schema.

PyYAML reads version 1.1: there `168:00:00` is 604,800, `no` is false, `010` is 8 and `2026-01-01` is a date. Here they are
the text "168:00:00", the text "no", the number 10 and the text "2026-01-01". One extension is kept: underscores can group an
integer's digits, as in `600_000_000_000`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import yaml

MOST_CHARACTERS = 256 * 1024
"""Length of the longest text that is read. The longest study that comes with the suite has 5,000 characters."""
MOST_VALUES = 20_000
"""Largest number of values in a text, with every alias written out."""
MOST_DEPTH = 40
INTEGERS = range(-(2**63), 2**63)

TAG = "tag:yaml.org,2002:"


def load_yaml(text: str) -> Any:
    """The value in `text`: null, a boolean, a number other than .nan, a text, or a list or mapping of these. Keys are texts.

    Raises yaml.YAMLError for anything else, and for texts that would take too much time or memory to read.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"longer than {MOST_CHARACTERS:,} characters")
    try:
        value = yaml.load(text, _CoreLoader)
    except RecursionError:
        raise _too_deep() from None
    except yaml.MarkedYAMLError as error:
        raise _explained(error, text) from None
    _check_size(value)
    return value


def dump_yaml(value: Any, width: int = 80) -> str:
    """`value` as YAML that both `load_yaml` and PyYAML read back as the same value. Mappings keep their order."""
    return yaml.dump(value, Dumper=_CoreDumper, sort_keys=False, width=width)


def _check_size(value: Any) -> None:
    """Raise YAMLError if aliases expand a short text to a large value, or to one that contains itself."""
    count = 0
    level = [value]
    for _ in range(MOST_DEPTH):
        count += len(level)
        if count > MOST_VALUES:
            raise yaml.YAMLError(f"holds more than {MOST_VALUES:,} values")
        level = list(islice((part for parent in level for part in _parts(parent)), MOST_VALUES + 1))
        if not level:
            return
    raise _too_deep()


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _explained(error: yaml.MarkedYAMLError, text: str) -> yaml.YAMLError:
    """The parser's error with places as in `_refused`, and with the cause if that is a tab, which the parser does not name."""
    said = re.sub(r'\s+in "<.*?>", line (\d+), column \d+:?', r" (line \1)", str(error))
    where = error.problem_mark.line if error.problem_mark else 0
    if any(re.match(r" *\t", line) for line in text.split("\n")[where : where + 1]):
        said += "; indent with spaces, not with tabs"
    return yaml.YAMLError(said)


def _too_deep() -> yaml.YAMLError:
    return yaml.YAMLError(f"nested more than {MOST_DEPTH} levels deep")


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    value = int(text, base) if len(text) <= 64 else INTEGERS.stop
    if value not in INTEGERS:
        shown = text if len(text) <= 40 else f"{text[:20]}\N{HORIZONTAL ELLIPSIS}"
        raise ValueError(f"the integer {shown} has more than 64 bits")
    return value


def _float(text: str) -> float:
    if text.lower() == ".nan":  # it does not even equal itself, so a file could not be compared with its copy
        raise ValueError(".nan is not a number")
    return float(text.lower().replace(".inf", "inf"))


def _text(text: str) -> str:
    if odd := re.search("[\0\ud800-\udfff]", text):
        raise ValueError(f"a text holds the character U+{ord(odd[0]):04X}, which no file can hold")
    return text


SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"null|Null|NULL|~|", lambda _: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", _integer),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _float),
    "str": (r"(?s:.*)", _text),
}
"""For each type, the pattern of its texts and the function that converts one or raises ValueError."""


def _base() -> Any:
    """libyaml's parser, fifty times as fast as PyYAML's own, if its version refuses text that is too deep for its stack."""
    return yaml.CSafeLoader if yaml.__with_libyaml__ and yaml._yaml.get_version() >= (0, 2, 5) else yaml.SafeLoader


class _CoreLoader(_base()):  # type: ignore[misc]
    """Constructs only the core schema's types. A repeated key is an error: PyYAML would silently keep the last value."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors: dict[str | None, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != TAG + "str":
                shown = repr(key.value)[:40] if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
                raise _refused(key, f"the key {shown} is not a text; put it into quotes")
            if key.value in keys:
                raise _refused(key, f"the key {key.value!r:.60} appears twice")
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Do nothing: YAML 1.2 has no merge key `<<`."""

    def construct_core(self, node: yaml.ScalarNode) -> Any:
        text = self.construct_scalar(node)
        pattern, convert = SCALARS[node.tag.removeprefix(TAG)]
        if not re.fullmatch(pattern, text):
            raise _refused(node, f"{text!r:.60} is not of the type {node.tag.replace(TAG, '!!')}")
        try:
            return convert(text)
        except ValueError as error:
            raise _refused(node, str(error)) from None

    def _unknown(self, node: yaml.Node) -> Any:
        raise _refused(node, f"{node.tag.replace(TAG, '!!')[:60]} is not a type of YAML's core schema")


def _refused(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"{problem} (line {node.start_mark.line + 1})")


class _CoreDumper(yaml.SafeDumper):
    """Quotes texts that either version of YAML would read as another type."""


for _kind, (_pattern, _) in SCALARS.items():
    _CoreLoader.add_constructor(TAG + _kind, _CoreLoader.construct_core)
    if _kind != "str":
        _anchored = re.compile(f"(?:{_pattern})$")  # PyYAML anchors a pattern only at the beginning
        _CoreLoader.add_implicit_resolver(TAG + _kind, _anchored, None)
        _CoreDumper.add_implicit_resolver(TAG + _kind, _anchored, None)
_CoreLoader.add_constructor(TAG + "seq", yaml.SafeLoader.construct_yaml_seq)
_CoreLoader.add_constructor(TAG + "map", yaml.SafeLoader.construct_yaml_map)
_CoreLoader.add_constructor(None, _CoreLoader._unknown)
