import math
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from curricula.core_yaml import dump_yaml, load_yaml
from curricula.errors import UsageError
from curricula.settings import Positive, PositiveNumber, Settings, parse, read_yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("168:00:00", "168:00:00"),
        ("12:30", "12:30"),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("600_000_000_000", 600_000_000_000),
        ("5e-4", 5e-4),
        ("1.5", 1.5),
        (".inf", math.inf),
        ("1_", "1_"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("'no'", "no"),
        ("{a: [1, x], b: !!str 3}", {"a": [1, "x"], "b": "3"}),
        ("[&a {x: 1}, *a]", [{"x": 1}, {"x": 1}]),
    ],
)
def test_scalars_have_the_types_of_the_core_schema(text, value):
    found = load_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("path", sorted([*(ROOT / "jobs/studies").glob("*"), *(ROOT / "env/profiles").glob("*")]))
def test_the_files_of_the_suite_read_as_before(path):
    def numbers(value):
        if isinstance(value, dict):
            return {key: numbers(part) for key, part in value.items()}
        if isinstance(value, list):
            return [numbers(part) for part in value]
        try:  # version 1.1 takes 5e-4 for a text, which the settings then convert
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    text = path.read_text()
    assert numbers(load_yaml(text)) == numbers(yaml.safe_load(text))


class Job(Settings, frozen=True):
    hours: PositiveNumber = 1
    nodes: Positive = 1
    names: dict[str, int] = {}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hours: 168:00:00", "hours: expected `float`, got `str`; it is '168:00:00'"),
        ("nodes: on", "nodes: expected `int`, got `str`; it is 'on'"),
        ("&a [*a]", "not valid YAML: nested more than 40 levels deep"),
        ("a: &a {b: *a}", "not valid YAML: nested more than 40 levels deep"),
        ("[" * 100_000, "not valid YAML: "),
        ("[" * 200 + "]" * 200, "not valid YAML: nested more than 40 levels deep"),
        (LAUGHS, "not valid YAML: holds more than 20,000 values"),
        (f"a: &a [{'1, ' * 9000}]\nb: [{'*a, ' * 9000}]", "not valid YAML: holds more than 20,000 values"),
        ("".join(f"k{i}: 1\n" for i in range(60_000)), "not valid YAML: longer than 262,144 characters"),
        ("".join(f"{i}:\n" for i in range(21_000)), "not valid YAML: the key '0' is not a text; put it into quotes"),
        ("names:\n" + "".join(f" k{i}: x\n" for i in range(3000)), "names.k0: expected `int`, got `str`; it is 'x'"),
        ("names: {a: 1, 1: 2}", "not valid YAML: the key '1' is not a text; put it into quotes (line 1)"),
        ("a: 1\n? [b]\n: 2", "not valid YAML: the key a list or a mapping is not a text; put it into quotes (line 2)"),
        ('a: "\\ud800"', "not valid YAML: "),
        ('"a\\udfff": 1', "not valid YAML: "),
        ('a: "\\0"', "not valid YAML: a text holds the character U+0000, which no file can hold (line 1)"),
        ("nodes: " + "9" * 30, f"not valid YAML: the integer {'9' * 30} has more than 64 bits (line 1)"),
        ("nodes: " + "9" * 9000, "not valid YAML: the integer 99999999999999999999… has more than 64 bits (line 1)"),
        ("a: !!timestamp 2026-01-01", "not valid YAML: !!timestamp is not a type of YAML's core schema (line 1)"),
        ("nodes: [1, .NaN]", "not valid YAML: .nan is not a number (line 1)"),
        ("a: !!int x", "not valid YAML: 'x' is not of the type !!int (line 1)"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "the job: unknown key"),
        ("a: 1\n---\nb: 2", "not valid YAML: expected a single document"),
        ("a:\n  b: 1\n   c: 2", "not valid YAML: mapping values are not allowed in this context (line 3)"),
    ],
)
def test_a_hostile_file_is_refused_in_a_sentence_and_soon(tmp_path, text, sentence):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(UsageError) as refused:
        parse(read_yaml(path, "no such study"), Job, str(path))
    assert time.process_time() - began < 20
    assert str(refused.value).startswith(f"{path}: {sentence}") and "\n" not in str(refused.value)
    assert len(str(refused.value).encode()) < len(str(path)) + 250


def test_a_tab_in_the_indentation_is_named(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("a:\n\tb: 1\n")
    with pytest.raises(UsageError, match=r"not valid YAML: .* \(line 2\); indent with spaces, not with tabs$"):
        read_yaml(path, "no such study")


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.sampled_from(
    ["1e5", "010", "0o7", "12e4567", "yes", "168:00:00", "1_000", "~", "0x1f", "2026-01-01", "<<", "=", ".5", "+1", ""]
)


@given(st.recursive(SCALARS | TEXTS, lambda part: st.lists(part) | st.dictionaries(TEXTS, part), max_leaves=8))
def test_what_is_written_reads_back_the_same_in_both_versions(value):
    assert load_yaml(dump_yaml(value)) == value == yaml.safe_load(dump_yaml(value))
