"""Writes docs/reference/ from the code: keys of studies and profiles, the command line, the files of a run.

    make docs      or      python docs/references.py

A test fails while a file is out of date or a key has no description.
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as types

from curricula.eval.rows import CapabilityRow, GenerationRow, ProbeRow, Pruning, SuffixRow, VerdictRow
from curricula.jobs.cli.main import WITH_OWN_PARSERS, build_parser
from curricula.jobs.completion import Done, Failure
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.slurm.submissions import Submission
from curricula.jobs.study import Study
from curricula.model.checkpoints.folder import CheckpointInfo, StoredFile
from curricula.model.config import LARGEST_SIZE
from curricula.settings import FINITE

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/references.py (`make docs`). Change the docstrings in the code instead. -->\n"
FILES: dict[str, type[msgspec.Struct]] = {
    "`eval/ARM/MODEL/TASK/BENCHMARK.jsonl` and `TASK.jsonl`": GenerationRow,
    "`pruning` in such a row": Pruning,
    "`eval/ARM/MODEL/TASK.verdicts.jsonl`": VerdictRow,
    "`eval/ARM/MODEL/gcg/BENCHMARK.suffixes.jsonl`": SuffixRow,
    "`eval/ARM/MODEL/probes.jsonl`": ProbeRow,
    "`eval/ARM/MODEL/capability/TASK.jsonl`": CapabilityRow,
    "`jobs/JOB/ELEMENT/done.json`": Done,
    "`jobs/JOB/ELEMENT/failed.json`": Failure,
    "`checkpoints/step_N/checkpoint.json`": CheckpointInfo,
    "each of its `files`": StoredFile,
    "`slurm/submissions.jsonl`": Submission,
}
MOST_VALUES = 12
"""Most values that a cell lists for a key that accepts certain words; longer lists stand below the table."""


def pages() -> dict[str, str]:
    """The text of each page, by its file's name."""
    return {
        "study.md": f"# Keys of a study\n\n{NOTE}\n{STUDY_INTRO}\n{_keys(Study)}",
        "profile.md": f"# Keys of a cluster profile\n\n{NOTE}\n{PROFILE_INTRO}\n{_keys(Profile)}",
        "commands.md": f"# The command line\n\n{NOTE}\n{COMMANDS_INTRO}\n{_commands()}",
        "files.md": f"# Files of a run folder\n\n{NOTE}\n{FILES_INTRO}\n{_files()}",
    }


STUDY_INTRO = """A study is one YAML file, such as `jobs/studies/demo.yaml`. A key without a default must be given. A key of
type *keys* has a section of its own below. `curricula submit` writes the study with all defaults to `RUN/study.yaml`.
"The paper" is [Sam et al. 2026](https://arxiv.org/abs/2601.07087); section numbers are the paper's. If a description names no
source, the default is ours.
"""
PROFILE_INTRO = """A profile says how one site runs jobs; nothing in it changes what is computed.
[Port a profile](../howto/profile.md) takes ten minutes; [cluster.md](../cluster.md) says more about some keys. Every key has
a default.
"""
COMMANDS_INTRO = """`curricula VERB --help` shows the same with an example. Exit codes: 0 for success, 1 if a job
failed or something outside the suite is wrong, 2 if the command or the study is wrong, 130 if interrupted,
141 if the reader of the output, such as `head`, left.
"""
FILES_INTRO = """[The run folder](../architecture.md#the-run-folder) lists every file, what writes it, and when. The
formats:

- `*.jsonl`: one JSON object a line; a torn last line is ignored. `*.json`: one object. `*.yaml`:
  [a study](study.md) or [a profile](profile.md).
- `metrics.jsonl`: [one line a step](../training.md#logs-and-metrics).
- `data/shards/SOURCE/SHARD.bin` and `.idx`: Megatron's indexed dataset, which Megatron-core reads unchanged. `SHARD.json`:
  what the shard was made from and what it holds.
- `models/ARM/MODEL/`: a Hugging Face folder, which `transformers` loads unchanged, and `curricula.json` with the hash of its
  contents. MODEL is the stage that made it, such as `instruct`, or `STAGE@POINT` for a model from within a training.
- `checkpoints/step_N/`: Megatron-core's `torch_dist` format, and `checkpoint.json`.
- `report/tables/*.csv`, `report/summary.json`: the numbers of every figure and table of the page. What a study
  does not measure has no table in `tables/`, and an empty list in `summary.json`.
"""


def _keys(root: type[msgspec.Struct]) -> str:
    """A section for each struct that `root` reaches, titled by the keys that hold it."""
    places: dict[type, list[str]] = {}

    def visit(kind: type[msgspec.Struct], place: str) -> None:
        places.setdefault(kind, []).append(place)
        for field in types.type_info(kind).fields:  # type: ignore[attr-defined]
            for inner, suffix in _structs(field.type):
                visit(inner, f"{place}.{field.encode_name}{suffix}".lstrip("."))

    visit(root, "")
    sections = []
    for kind, where in places.items():
        title = ", ".join(f"`{place}`" for place in dict.fromkeys(where)) if kind is not root else "At the top"
        sections.append(_section(title, kind, with_defaults=True))
    return "\n\n".join(sections) + "\n"


def _structs(kind: types.Type, suffix: str = "") -> Iterator[tuple[type[msgspec.Struct], str]]:
    """The structs within a type, each with what its key adds to the path: `.NAME` in a mapping, `[]` in a list."""
    if isinstance(kind, types.StructType):
        yield kind.cls, suffix
    elif isinstance(kind, types.UnionType):
        for one in kind.types:
            yield from _structs(one, suffix)
    elif isinstance(kind, types.DictType):
        yield from _structs(kind.value_type, f"{suffix}.NAME")
    elif isinstance(kind, types.VarTupleType | types.ListType):
        yield from _structs(kind.item_type, f"{suffix}[]")


def _section(title: str, kind: type[msgspec.Struct], with_defaults: bool) -> str:
    """A struct's docstring and a table of its fields, with a column of defaults for settings and without one for files."""
    info: types.StructType = types.type_info(kind)  # type: ignore[assignment]
    described, rows = descriptions(kind), []
    if with_defaults and info.tag_field:
        rows.append([f"`{info.tag_field}`", f'"{info.tag}"', "required in `stages`", "The kind of stage."])
    for field in info.fields:
        default = [_default(field)] if with_defaults else []
        rows.append([f"`{field.encode_name}`", _type(field.type), *default, _sentence(described.get(field.name, ""))])
    columns = ["key", "type", "default", "meaning"] if with_defaults else ["field", "type", "meaning"]
    names = dict.fromkeys(f"`{name}`" for field in info.fields for name in _long_lists(field.type))
    below = f"\n\nNames: {', '.join(names)}." if names else ""
    return f"## {title}\n\n{_sentence(inspect.getdoc(kind) or '')}\n\n{_table(columns, rows)}{below}"


def _long_lists(kind: types.Type) -> Iterator[object]:
    """The values of those types within `kind` that accept more than a cell lists."""
    if isinstance(kind, types.LiteralType) and len(kind.values) > MOST_VALUES:
        yield from kind.values
    elif isinstance(kind, types.UnionType):
        for one in kind.types:
            yield from _long_lists(one)
    elif isinstance(kind, types.VarTupleType | types.ListType):
        yield from _long_lists(kind.item_type)


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


@functools.cache
def descriptions(kind: type) -> dict[str, str]:
    """The docstrings under the fields of a class and its base classes, by field."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        if not one.__module__.startswith("curricula"):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[field.target.id] = str(after.value.value)  # type: ignore[union-attr]
    return found


def _sentence(text: str) -> str:
    """A docstring as one line of Markdown; `<...>`, which would be HTML, becomes code."""
    return re.sub(r"<([^>\s]+)>", r"`<\1>`", " ".join(text.split()))


def _type(kind: types.Type) -> str:
    if isinstance(kind, types.UnionType):
        return " or ".join(dict.fromkeys(map(_type, kind.types)))
    if isinstance(kind, types.IntType | types.FloatType):
        bounds = [(">", kind.gt), ("≥", kind.ge), ("<", kind.lt), ("≤", kind.le)]
        shown = [f"{sign} {bound:,}" for sign, bound in bounds if bound not in (None, FINITE, LARGEST_SIZE)]
        return " ".join(["integer" if isinstance(kind, types.IntType) else "number", ", ".join(shown)]).strip()
    if isinstance(kind, types.LiteralType):
        return " or ".join(f"`{value}`" for value in kind.values) if len(kind.values) <= MOST_VALUES else "names below"
    if isinstance(kind, types.DictType):
        return f"{_type(kind.value_type)} by name"
    if isinstance(kind, types.VarTupleType | types.ListType):
        return f"list of {_type(kind.item_type)}"
    if isinstance(kind, types.StructType):
        return "keys"
    if isinstance(kind, types.TupleType):
        return f"({', '.join(map(_type, kind.item_types))})"
    simple = {types.StrType: "text", types.BoolType: "true or false", types.NoneType: "null", types.AnyType: "anything"}
    return simple[type(kind)]


def _default(field: types.Field) -> str:
    if field.required:
        return "(must be given)"
    value = _value(field)
    if isinstance(value, msgspec.Struct):
        inner = types.type_info(type(value)).fields  # type: ignore[attr-defined]
        own = {one.encode_name: found for one in inner if (found := getattr(value, one.name)) != _value(one)}
        return f"`{_json(own)}`; if the section is given, those below" if own else "those below"
    shown = _json(value)
    return f"`{shown}`" if len(shown) <= 50 else f"`{shown[:46]}…`"


def _value(field: types.Field) -> Any:
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def _json(value: Any) -> str:
    return msgspec.json.encode(msgspec.to_builtins(value)).decode()


def _files() -> str:
    return "\n\n".join(_section(place, kind, with_defaults=False) for place, kind in FILES.items()) + "\n"


def _commands() -> str:
    return "\n\n".join(_command(name, parser, help) for name, parser, help in commands()) + "\n"


def commands() -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Every verb with its parser and its summary line."""

    def visit(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
                for verb, inner in action.choices.items():
                    yield f"{name} {verb}", inner, summaries.get(verb, "")
                    yield from visit(f"{name} {verb}", inner)

    return visit("curricula", build_parser(WITH_OWN_PARSERS))


def _command(name: str, parser: argparse.ArgumentParser, summary: str) -> str:
    rows = []
    formatter = parser._get_formatter()
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        metavar = action.metavar or "|".join(map(str, action.choices or [action.dest.upper()]))
        value = "" if action.nargs == 0 else str(metavar).replace("|", " or ")
        shown = " ".join(filter(None, [", ".join(action.option_strings), value]))
        rows.append([f"`{shown}`", _sentence(formatter._expand_help(action) if action.help else "")])
    text = [f"## {name}", f"{summary[:1].upper()}{summary[1:]}."]
    return "\n\n".join(text + ([_table(["argument", "meaning"], rows)] if rows else []))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
