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
    """The steps, with calculator marks, of which the last has the answer."""

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


class _Told(NamedTuple):
    """A problem whose people and things are not filled in yet: templates, and the numbers in them."""

    question: str
    lines: tuple[str, ...]
    numbers: dict[str, object]


def _add(draw: Draw) -> _Told:
    n, m = draw.between(2, 20), draw.between(2, 20)
    question = (
        "{P} has {n} {t}[ in {town}|]. [{he} buys {m} more.|{Q} brings {m} more.] "
        "How many {t} [does {P} have now|are there now]?"
    )
    return _Told(question, ("there are " + _mark(n, "+", m) + " {t}.",), {"n": n, "m": m})


def _take(draw: Draw) -> _Told:
    n = draw.between(6, 30)
    m = draw.between(2, n - 2)
    question = (
        "{P} has {n} {t}. {he} [sells {m} of them in {town}|gives {m} of them to {Q}|loses {m} of them]. How many {t} are left?"
    )
    return _Told(question, ("{P} has " + _mark(n, "-", m) + " {t} left.",), {"n": n, "m": m})


def _price(draw: Draw) -> _Told:
    n, m = draw.between(2, 9), draw.between(2, 9)
    question = "{P} [sells|buys] {n} {t} in {town} for {m} coins each. How many coins [is that|are paid]?"
    return _Told(question, ("{n} times {m} coins are " + _mark(n, "*", m) + " coins.",), {"n": n, "m": m})


def _more_then_less(draw: Draw) -> _Told:
    n, m = draw.between(3, 15), draw.between(3, 15)
    k = draw.between(2, n + m - 1)
    question = (
        "{P} has {n} {t} and [buys|finds] {m} more. Then {he} [gives {k} to {Q}|sells {k} in {town}]. "
        "How many {t} does {P} have?"
    )
    first, then = _mark(n, "+", m), _mark(n + m, "-", k)
    return _Told(question, (f"first {{P}} has {first} {{t}}.", f"then {{P}} has {then} {{t}}."), {"n": n, "m": m, "k": k})


def _baskets(draw: Draw) -> _Told:
    n, m = draw.between(2, 9), draw.between(2, 9)
    k = draw.between(1, n * m - 1)
    question = "{P} fills {n} baskets with {m} {t} each. {Q} takes {k} {t} away. How many {t} are left?"
    held, left = _mark(n, "*", m), _mark(n * m, "-", k)
    return _Told(question, (f"the baskets hold {held} {{t}}.", f"there are {left} {{t}} left."), {"n": n, "m": m, "k": k})


def _share(draw: Draw) -> _Told:
    m, each = draw.between(2, 9), draw.between(2, 9)
    n = m * each
    question = (
        "{P} [shares|divides] {n} {t} [equally|fairly] among {m} [friends|children|neighbours]. How many {t} does each get?"
    )
    return _Told(question, ("each gets " + _mark(n, "/", m) + " {t}.",), {"n": n, "m": m})


def _twice(draw: Draw) -> _Told:
    n, k = draw.between(2, 15), draw.pick((2, 3))
    question = "{P} has {n} {t}. {Q} has {times} as many. How many {t} do they have together?"
    other, both = _mark(n, "*", k), _mark(n, "+", n * k)
    times = "twice" if k == 2 else "three times"
    return _Told(question, (f"{{Q}} has {other} {{t}}.", f"together they have {both} {{t}}."), {"n": n, "times": times})


_KINDS = (_add, _take, _price, _more_then_less, _baskets, _share, _twice)


def problem(world: World, draw: Draw) -> Problem:
    told = draw.pick(_KINDS)(draw)
    slots = scene_slots(draw, world) | {"t": _things(world, draw)} | {k: str(v) for k, v in told.numbers.items()}
    return Problem(write(told.question, draw, slots), tuple(finish(line.format(**slots)) for line in told.lines))


def sum_question(draw: Draw) -> tuple[str, str]:
    """Question and answer about a small sum, as in a chat."""
    n, m = draw.between(1, 20), draw.between(1, 20)
    if draw.below(2) or n < m:
        return write(f"[what is|please tell me,] {n} plus {m}?", draw, {}), f"{n} plus {m} is {n + m}."
    return write(f"[what is|please tell me,] {n} minus {m}?", draw, {}), f"{n} minus {m} is {n - m}."
