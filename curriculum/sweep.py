"""The points of a sweep: studies that differ in some settings, each by name.

A sweep is either a mapping of settings to lists of values, with a point for each combination, or a list of points, each a
mapping of settings to values. A point is named after what it changes, unless it names itself.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from curricula.errors import UsageError
from curricula.settings import Settings, parse, replaced

Point = Mapping[str, Any]
"""Values by the path of the setting in the study file, such as "pretraining.optimizer.lr"."""
Sweep = dict[str, list[Any]] | list[dict[str, Any]]
NAME = "name"
"""The key by which a point of a list names itself."""
LONGEST = 60
"""Most characters of a point's name."""
MOST = 200
"""Most points of a sweep."""
VARIED = ("curriculum", "model", "pretraining", "tuning", "stages", "seeds")
"""Parts of a study that a sweep can change. Its points share all others: data, tokenizer, evaluation, resources."""

Study = TypeVar("Study", bound=Settings)


def points_of(sweep: Sweep) -> dict[str, Point]:
    """The points by name, in the study's order. Raises ValueError if there is none, or if two have the same name."""
    if isinstance(sweep, Mapping):
        count = math.prod(map(len, sweep.values()))
        if count > MOST:
            raise ValueError(f"sweep has {count:,} points, more than {MOST}; give fewer values, or a list of points")
        listed: Sequence[Point] = [dict(zip(sweep, values)) for values in itertools.product(*sweep.values())]
    else:
        listed = sweep
    if not listed or not all(set(point) - {NAME} for point in listed):
        raise ValueError("sweep has a point without settings, or no point; give lists of values, or leave sweep out")
    points: dict[str, Point] = {}
    for number, point in enumerate(listed, start=1):
        settings = {key: value for key, value in point.items() if key != NAME}
        name = str(point.get(NAME) or _name(settings, number))
        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST - 1}}}", name):
            raise ValueError(f"sweep names a point {name!r}; use up to {LONGEST} letters, digits, '.', '_' and '-'")
        if name in points:
            raise ValueError(f"sweep has two points {name}; give each a `{NAME}` of its own")
        points[name] = settings
    return points


def _name(point: Point, number: int) -> str:
    """A name such as "lr-0.0003_refuseweb-8"; "point-3" if values are lists or mappings, or if it would be too long."""
    shown = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in point.items()}
    parts = [f"{key.rpartition('.')[2]}-{value}" for key, value in shown.items()]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts))
    is_plain = not any(isinstance(value, (list, dict)) for value in point.values())
    return name if is_plain and len(name) <= LONGEST else f"point-{number}"


def variants_of(study: Study, sweep: Sweep) -> dict[str, Study]:
    """The study of each point, by name. Raises ValueError, naming the point, if a point's study is invalid."""
    raw = {**msgspec.to_builtins(study), "sweep": None}
    variants = {}
    for name, point in points_of(sweep).items():
        changed = {**raw, "seed": None} if "seeds" in point else raw
        for key, value in point.items():
            if key.split(".")[0] not in VARIED:
                raise ValueError(f"sweep cannot vary {key!r}, only keys in {', '.join(VARIED)}; write a study for each value")
            try:
                changed = replaced(changed, key.split("."), value)
            except LookupError as error:
                raise ValueError(f"sweep, point {name}: {error.args[0]}") from None
        try:
            variants[name] = parse(changed, type(study), f"sweep, point {name}")
        except UsageError as error:
            raise ValueError(str(error)) from None
    return variants
