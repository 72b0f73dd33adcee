"""Reads untrusted YAML, with the types of YAML 1.2's core schema.

PyYAML reads version 1.1: there `168:00:00` is 604,800, `no` is false, `010` is 8 and `2026-01-01` is a date. Here they are
the text "168:00:00", the text "no", the number 10 and the text "2026-01-01". One liberty is kept: underscores may group an
integer's digits, as in `600_000_000_000`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

import yaml

MOST_CHARACTERS = 256 * 1024
"""Of a text. The longest study that comes with the suite has 5,000."""
MOST_VALUES = 20_000
"""With every alias written out."""
MOST_DEPTH = 40
INTEGERS = range(-(2**63), 2**63)

TAG = "tag:yaml.org,2002:"
NULL = re.compile(r"null|Null|NULL|~|")
BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def load_yaml(text: str) -> Any:
    """The value in `text`: null, a boolean, a number but not .nan, a text, or a list or a mapping of such. Keys are texts.

    Raises yaml.YAMLError for anything else, and for texts that would take long or much memory to read.
    """
    if len(text) > MOST_CHARACTERS:
        raise yaml.YAMLError(f"longer than {MOST_CHARACTERS:,} characters")
    try:
        value = yaml.load(text, _CoreLoader)
    except RecursionError:
        raise _too_deep() from None
    _check_size(value)
    return value


def dump_yaml(value: Any, width: int = 80) -> str:
    """`value` as a text that `load_yaml` reads back to it, and PyYAML too. Mappings keep their order."""
    return yaml.dump(value, Dumper=_CoreDumper, sort_keys=False, width=width)


def _check_size(value: Any) -> None:
    """Raise YAMLError when aliases make of a short text a large value, or one that holds itself."""
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


def _too_deep() -> yaml.YAMLError:
    return yaml.YAMLError(f"nested more than {MOST_DEPTH} levels deep")


def _base() -> Any:
    """libyaml's parser, fifty times as fast as the one in Python, if it refuses what is nested too deep for its stack."""
    return yaml.CSafeLoader if yaml.__with_libyaml__ and yaml._yaml.get_version() >= (0, 2, 5) else yaml.SafeLoader


class _CoreLoader(_base()):  # type: ignore[misc]
    """Constructs the core schema's types alone. A repeated key is an error: PyYAML would silently take the last one."""

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
        """Version 1.2 has no merge key `<<`."""

    def _null(self, node: yaml.ScalarNode) -> None:
        self._matching(node, NULL)

    def _boolean(self, node: yaml.ScalarNode) -> bool:
        return self._matching(node, BOOLEAN).lower() == "true"

    def _integer(self, node: yaml.ScalarNode) -> int:
        text = self._matching(node, INTEGER)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        value = int(text, base) if len(text) <= 64 else INTEGERS.stop
        if value not in INTEGERS:
            raise _refused(node, f"the integer {text[:20]} has more than 64 bits")
        return value

    def _float(self, node: yaml.ScalarNode) -> float:
        text = self._matching(node, FLOAT).lower()
        if text == ".nan":  # which is not even equal to itself: a file could not be compared with its copy
            raise _refused(node, ".nan is not a number")
        return float(text.replace(".inf", "inf"))

    def _text(self, node: yaml.ScalarNode) -> str:
        text = self.construct_scalar(node)
        odd = next((character for character in text if character == "\0" or "\ud800" <= character <= "\udfff"), None)
        if odd is not None:
            raise _refused(node, f"a text holds the character U+{ord(odd):04X}, which no file can hold")
        return text

    def _unknown(self, node: yaml.Node) -> Any:
        raise _refused(node, f"{node.tag.replace(TAG, '!!')[:60]} is not a type of YAML's core schema")

    def _matching(self, node: yaml.ScalarNode, pattern: re.Pattern[str]) -> str:
        text = self.construct_scalar(node)
        if not pattern.fullmatch(text):
            raise _refused(node, f"{text!r:.60} is not of the type {node.tag.replace(TAG, '!!')}")
        return text


def _refused(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.YAMLError(f"{problem} (line {node.start_mark.line + 1})")


class _CoreDumper(yaml.SafeDumper):
    """Quotes a text that either version of YAML would take for something else."""


for _kind, _pattern in {"null": NULL, "bool": BOOLEAN, "int": INTEGER, "float": FLOAT}.items():
    _whole = re.compile(f"(?:{_pattern.pattern})$")  # PyYAML matches from the beginning
    _CoreLoader.add_implicit_resolver(TAG + _kind, _whole, None)
    _CoreDumper.add_implicit_resolver(TAG + _kind, _whole, None)
_CONSTRUCTORS: dict[str | None, Any] = {
    TAG + "null": _CoreLoader._null,
    TAG + "bool": _CoreLoader._boolean,
    TAG + "int": _CoreLoader._integer,
    TAG + "float": _CoreLoader._float,
    TAG + "str": _CoreLoader._text,
    TAG + "seq": yaml.SafeLoader.construct_yaml_seq,
    TAG + "map": yaml.SafeLoader.construct_yaml_map,
    None: _CoreLoader._unknown,
}
for _tag, _construct in _CONSTRUCTORS.items():
    _CoreLoader.add_constructor(_tag, _construct)
