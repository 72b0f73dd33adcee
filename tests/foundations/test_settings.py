"""Settings: constraints hold wherever an object is made; errors in a YAML file name the key, the value and the correction."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Annotated, Literal

import msgspec
import pytest

from curricula.errors import UsageError
from curricula.model.study import Allocation
from curricula.settings import (
    NonNegative,
    NonNegativeNumber,
    Positive,
    PositiveNumber,
    Settings,
    Share,
    differences,
    parse,
    read_yaml,
)


class Group(Settings, frozen=True):
    count: Positive = 1
    retries: NonNegative = 0
    timeout_s: PositiveNumber = 1.0
    price: NonNegativeNumber | None = None
    fraction: Share = 0.5
    modes: tuple[Literal["fast", "slow"], ...] | None = None
    times: dict[Literal["day", "night"], int] = {}
    names: dict[Annotated[str, msgspec.Meta(pattern="^a$")], int] = {}

    def check(self) -> None:
        if self.price and not self.retries:
            raise ValueError(f"price is {self.price} without retries; set retries")


class Whole(Settings, frozen=True):
    name: str
    mode: Literal["fast", "slow"] | None = None
    group: Group = Group()
    groups: dict[str, Group] = {}
    weights: dict[str, Share] = {}


@pytest.mark.parametrize(
    ("field", "bad"),
    [("count", 0), ("count", 1.5), ("count", "1"), ("retries", -1), ("timeout_s", 0.0), ("price", -1.0), ("fraction", 1.1)]
    + [("timeout_s", math.nan), ("timeout_s", math.inf), ("price", math.inf), ("fraction", math.nan)],
)
def test_a_constraint_holds_for_an_object_made_in_python(field, bad):
    with pytest.raises(ValueError, match=rf"^{field} is {bad!r}: Expected "):
        Group(**{field: bad})


def test_an_allocation_of_minus_one_nodes_cannot_be_made():
    with pytest.raises(ValueError, match="^nodes is -1: Expected `int` >= 1"):
        Allocation(nodes=-1)


def test_an_infinite_number_is_named_as_such():
    with pytest.raises(ValueError, match="^timeout_s is inf: Expected a finite `float`$"):
        Group(timeout_s=math.inf)


def test_constraints_hold_within_mappings_and_for_changed_copies():
    with pytest.raises(ValueError, match="weights is {'a': 2.0}: Expected `float` <= 1.0"):
        Whole(name="x", weights={"a": 2.0})
    with pytest.raises(ValueError, match="group is 'x': Expected `mapping`"):
        Whole(name="x", group="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count is 0"):
        msgspec.structs.replace(Group(), count=0)


def test_check_is_for_fields_together():
    assert Group(price=2.0, retries=1).price == 2.0
    with pytest.raises(ValueError, match="^price is 2.0 without retries; set retries$"):
        Group(price=2.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: x\ngroup: {count: 0}", "group.count: expected `int` >= 1; it is 0"),
        ("name: x\ngroup: {timeout_s: .inf}", "group.timeout_s: expected a finite `float`; it is inf"),
        ("name: x\ngroups: {a: {}, b: {fraction: 2}}", "groups.b.fraction: expected `float` <= 1.0; it is 2"),
        ("name: x\ngroup: {cuont: 3}", "group: unknown key `cuont`; did you mean `count`?"),
        ("name: x\nzzz: 3", "the whole: unknown key `zzz`; known keys are name, mode, group, groups, weights"),
        ("mode: fast", "the whole: the key `name` is missing; add it"),
        ("name: x\nmode: quick", "mode: 'quick' is not known; choose one of fast, slow"),
        ("name: x\ngroup: {modes: [fast, quick]}", "group.modes.1: 'quick' is not known; choose one of fast, slow"),
        ("name: x\ngroup: {times: {day: 1, noon: 2}}", "group.times: 'noon' is not known; choose one of day, night"),
        ("name: x\ngroup: {names: {a: 1, B: 2}}", "group.names: expected `str` matching regex '^a$'; it is 'B'"),
        ("name: x\ngroup: {price: 2}", "group: price is 2.0 without retries; set retries"),
        ("# nothing yet", "the whole is empty; write its keys, one `key: value` a line"),
        ("name: x\ngroup: {modes: {a: 1}}", "group.modes: expected `list | null`, got `mapping`; it is {"),
        ("name: x\nobject: 3", "the whole: unknown key `object`; known keys are name, mode, group, groups, weights"),
        ("- secret", "the whole: expected `mapping`, got `list`"),
        ("name: [" + "1, " * 60 + "]", "name: expected `str`, got `list`; it is [1, 1, "),
    ],
)
def test_an_error_in_a_file_names_the_key_the_value_and_the_correction(tmp_path, text, sentence):
    path = tmp_path / "whole.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        parse(read_yaml(path, "no such file"), Whole, str(path))
    assert str(raised.value).startswith(f"{path}: {sentence}") and len(str(raised.value)) < len(str(path)) + 120
    assert "secret" not in str(raised.value)


def test_a_check_of_the_whole_file_is_its_sentence_alone():
    with pytest.raises(UsageError, match="^group.yaml: price is 2.0 without retries; set retries$"):
        parse({"price": 2.0}, Group, "group.yaml")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "no such study; give a path"),
        (b"\xff", "cannot be read (it is not UTF-8 text); name a YAML file"),
        (b"a: [", "not valid YAML: while parsing"),
        (b"a: 1\na: 2", "not valid YAML: the key 'a' appears twice"),
        (b"a: !!python/object:os.system {}", "not valid YAML: !!python/object:os.system is not a type of YAML"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, sentence):
    path = tmp_path / "study.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as raised:
        read_yaml(path, "no such study; give a path")
    assert str(raised.value).startswith(f"{path}: {sentence}")


def test_differences_are_named_by_their_path():
    then, now = {"a": {"b": 1, "c": [1, 2]}, "d": "x" * 99}, {"e": 0, "a": {"b": 2, "c": [1, 3]}, "d": "y"}
    assert differences(then, now) == [
        "a.b was 1, now 2",
        "a.c[1] was 2, now 3",
        f"d was '{'x' * 56}..., now 'y'",
        "e was null, now 0",
    ]
    assert differences({"a": 1}, {"a": 1}) == []
    some = {"a": {"b": 1}, "c": [1], "d": [1, 2]}
    assert differences(some, {"d": [1]}) == ['a was {"b": 1}, now null', "c was [1], now null", "d was [1, 2], now [1]"]
    assert differences({"d": [1]}, some) == ["d was [1], now [1, 2]", 'a was null, now {"b": 1}', "c was null, now [1]"]
    tasks = {"tasks": ("attacks-topk",)}
    assert differences(tasks, {"tasks": ()}) == ['tasks was ["attacks-topk"], now []']
    assert differences(tasks, {"tasks": ("probes",)}) == ["tasks[0] was 'attacks-topk', now 'probes'"]
    assert differences({"on": False}, {"on": True}) == ["on was false, now true"]


RACE = """
import sys, threading, msgspec
from curricula.settings import convert, decode
sys.setswitchinterval(1e-6)
kinds = []
for number in range(20):
    inner = msgspec.defstruct("Inner", [("a", int, 0), ("b", dict[str, float] | None, None)])
    middle = msgspec.defstruct("Middle", [("inner", inner), ("a", int, 0)])
    kinds.append(msgspec.defstruct("Outer", [("middle", middle), ("a", float, 0.0), ("inner", inner | None, None)]))
together = threading.Barrier(8)

def work():
    for kind in kinds:
        together.wait()
        convert({"middle": {"inner": {"a": 1}}}, kind)
        decode(b'{"middle": {"inner": {"a": 1}}}', kind)

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_may_meet_a_struct_for_the_first_time_together():
    ended = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
