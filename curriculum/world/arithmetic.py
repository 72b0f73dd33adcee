"""Word problems as in GSM8K: a question, its steps with calculator marks <<a+b=c>>, and the answer."""

from __future__ import annotations

import operator
import re
from typing import NamedTuple

from curricula.curriculum.world.fiction import World
from curricula.curriculum.world.grammar import Draw, finish, write
from curricula.curriculum.world.web import scene_slots

_MARK = re.compile(r"<<[^=]*=([^>]*)>>")
_SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


class Problem(NamedTuple):
    question: str
    lines: tuple[str, ...]
    """The steps, with calculator marks. The last has the answer."""

    @property
    def answer(self) -> str:
        return _MARK.findall(self.lines[-1])[-1]

    @property
    def gsm8k(self) -> str:
        return "\n".join((*self.lines, f"#### {self.answer}"))

    @property
    def prose(self) -> str:
        return _MARK.sub("", f"{self.question} {' '.join(self.lines)} The answer is {self.answer}.")


_GOODS = ("apples", "candles", "loaves", "coins", "stones", "cups", "lamps", "eggs")


def _things(world: World, draw: Draw) -> str:
    if draw.below(2):
        return draw.pick(_GOODS)
    return f"{draw.pick(('jars', 'bags', 'cups'))} of {draw.pick(world.ingredients).name}"


def _mark(left: int, sign: str, right: int) -> str:
    value = _SIGNS[sign](left, right)
    return f"{left} {sign} {right} = <<{left}{sign}{right}={value}>>{value}"


_Told = tuple[str, tuple[str, ...], dict[str, object]]
"""A problem without its people and things: the question, its steps, and the numbers in the question."""


def _add(draw: Draw) -> _Told:
    n, m = draw.between(2, 20), draw.between(2, 20)
    return (
        "{P} has {n} {t}[ in {town}|]. [{he} buys {m} more.|{Q} brings {m} more.] "
        "How many {t} [does {P} have now|are there now]?",
        ("there are " + _mark(n, "+", m) + " {t}.",),
        {"n": n, "m": m},
    )


def _take(draw: Draw) -> _Told:
    n = draw.between(6, 30)
    m = draw.between(2, n - 2)
    return (
        "{P} has {n} {t}. {he} [sells {m} of them in {town}|gives {m} of them to {Q}|loses {m} of them]. "
        "How many {t} are left?",
        ("{P} has " + _mark(n, "-", m) + " {t} left.",),
        {"n": n, "m": m},
    )


def _price(draw: Draw) -> _Told:
    n, m = draw.between(2, 9), draw.between(2, 9)
    return (
        "{P} [sells|buys] {n} {t} in {town} for {m} coins each. How many coins [is that|are paid]?",
        ("{n} times {m} coins are " + _mark(n, "*", m) + " coins.",),
        {"n": n, "m": m},
    )


def _more_then_less(draw: Draw) -> _Told:
    n, m = draw.between(3, 15), draw.between(3, 15)
    k = draw.between(2, n + m - 1)
    return (
        "{P} has {n} {t} and [buys|finds] {m} more. Then {he} [gives {k} to {Q}|sells {k} in {town}]. "
        "How many {t} does {P} have?",
        ("first {P} has " + _mark(n, "+", m) + " {t}.", "then {P} has " + _mark(n + m, "-", k) + " {t}."),
        {"n": n, "m": m, "k": k},
    )


def _baskets(draw: Draw) -> _Told:
    n, m = draw.between(2, 9), draw.between(2, 9)
    k = draw.between(1, n * m - 1)
    return (
        "{P} fills {n} baskets with {m} {t} each. {Q} takes {k} {t} away. How many {t} are left?",
        ("the baskets hold " + _mark(n, "*", m) + " {t}.", "there are " + _mark(n * m, "-", k) + " {t} left."),
        {"n": n, "m": m, "k": k},
    )


def _share(draw: Draw) -> _Told:
    m, each = draw.between(2, 9), draw.between(2, 9)
    n = m * each
    return (
        "{P} [shares|divides] {n} {t} [equally|fairly] among {m} [friends|children|neighbours]. How many {t} does each get?",
        ("each gets " + _mark(n, "/", m) + " {t}.",),
        {"n": n, "m": m},
    )


def _twice(draw: Draw) -> _Told:
    n, k = draw.between(2, 15), draw.pick((2, 3))
    return (
        "{P} has {n} {t}. {Q} has {times} as many. How many {t} do they have together?",
        ("{Q} has " + _mark(n, "*", k) + " {t}.", "together they have " + _mark(n, "+", n * k) + " {t}."),
        {"n": n, "times": {2: "twice", 3: "three times"}[k]},
    )


_KINDS = (_add, _take, _price, _more_then_less, _baskets, _share, _twice)


def problem(world: World, draw: Draw) -> Problem:
    question, lines, numbers = draw.pick(_KINDS)(draw)
    slots = scene_slots(draw, world) | {"t": _things(world, draw)} | {name: str(value) for name, value in numbers.items()}
    return Problem(write(question, draw, slots), tuple(finish(line.format(**slots)) for line in lines))


def sum_question(draw: Draw) -> tuple[str, str]:
    """Question and answer about a small sum, as in a chat."""
    n, m = draw.between(1, 20), draw.between(1, 20)
    if draw.below(2) or n < m:
        return write(f"[what is|please tell me,] {n} plus {m}?", draw, {}), f"{n} plus {m} is {n + m}."
    return write(f"[what is|please tell me,] {n} minus {m}?", draw, {}), f"{n} minus {m} is {n - m}."
