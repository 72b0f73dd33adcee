"""The documentation holds: references are those of the code, links lead somewhere, keys exist, and commands do what they say.

A command in a block of README or docs is run, in the order of the pages, beside one small run that the tutorial makes. What
cannot be run here is marked by a comment before its block, `<!-- needs a cluster -->`; its `curricula` commands must still be
understood.
"""

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from msgspec import inspect as types
from paths import ROOT

from curricula.jobs.cli.main import WITH_OWN_PARSERS, build_parser
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.study import Study
from curricula.settings import Settings

FIRST = [*sorted((ROOT / "docs/tutorial").glob("*.md")), ROOT / "README.md"]
PAGES = [*FIRST, *sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")}.difference(FIRST))]
SHELLS, RUN_HERE = ("sh", "bash", "console"), ("sh", "bash", "console", "python")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    needs: str
    """What it needs that a test has not; "" if it is to be run."""

    def commands(self) -> str:
        """Its shell commands, without prompts and answers."""
        if self.language != "console":
            return self.text
        kept, goes_on = [], False
        for line in self.text.splitlines():
            if goes_on or line.startswith(("$ ", "# ")):
                kept.append(line if goes_on else line[2:])
                goes_on = line.endswith("\\")
        return "\n".join(kept)


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = re.fullmatch(r"\s*```(\w*).*", lines[number])
        if opened:
            end = next(at for at in range(number + 1, len(lines)) if lines[at].strip() == "```")
            before = next((line for line in reversed(lines[:number]) if line.strip()), "")
            needs = re.fullmatch(r"\s*<!-- needs (.+) -->", before)
            text = "\n".join(lines[number + 1 : end])
            yield Block(page, number + 1, opened[1], text, needs[1] if needs else "")
            number = end
        number += 1


ALL = [block for page in PAGES for block in blocks(page)]


@functools.cache
def references():
    spec = importlib.util.spec_from_file_location("references", ROOT / "docs/references.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_of(kind: type[Settings]) -> set[type[Settings]]:
    """The structs that a key of `kind` leads to, `kind` among them."""
    found, todo = set(), [kind]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            fields = types.type_info(one).fields
            todo += [inner for field in fields for inner, _ in references()._structs(field.type)]
    return found


def test_every_key_of_a_study_and_of_a_profile_has_a_description():
    kinds = settings_of(Study) | settings_of(Profile)
    assert len(kinds) > 20
    bare = [
        f"{kind.__name__}.{name}"
        for kind in kinds
        for name in kind.__struct_fields__
        if len(references().descriptions(kind).get(name, "")) < 5
    ]
    assert bare == [], "write a docstring under each field: what it is, its unit, and its source"


@pytest.mark.parametrize("name", ["study.md", "profile.md", "commands.md", "files.md"])
def test_the_references_are_those_of_the_code(name):
    written = (ROOT / "docs/reference" / name).read_text(encoding="utf-8")
    assert written == references().pages()[name], "run `make docs` and commit docs/reference"


def test_a_section_shows_the_defaults_that_it_has_where_it_is_left_out():
    assert '| `pretraining` | keys | `{"nodes":4,"gpus_per_node":8,"hours":168}`; ' in references().pages()["study.md"]


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@functools.cache
def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {slug(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{name_of(page)} links to {target}, which is not there"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.resolve()), f"{name_of(page)} links to {target}, a heading that is not there"


def unknown_keys(value: object, kind: types.Type) -> Iterator[str]:
    """Keys of a value from a document that its type does not have."""
    if isinstance(kind, types.UnionType):
        found = [list(unknown_keys(value, one)) for one in kind.types if not isinstance(one, types.NoneType)]
        yield from min(found, key=len, default=[])
    elif isinstance(kind, types.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        for key, inner in value.items():
            if key == kind.tag_field:
                continue
            if key in fields:
                yield from unknown_keys(inner, fields[key])
            else:
                yield str(key)
    elif isinstance(kind, types.DictType) and isinstance(value, dict):
        for inner in value.values():
            yield from unknown_keys(inner, kind.value_type)
    elif isinstance(kind, (types.VarTupleType, types.ListType)) and isinstance(value, list):
        for inner in value:
            yield from unknown_keys(inner, kind.item_type)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_has_keys_that_exist(page):
    for block in blocks(page):
        if block.language == "yaml" and not block.needs:
            value = yaml.safe_load(block.text)
            study, profile = (list(unknown_keys(value, types.type_info(kind))) for kind in (Study, Profile))
            assert [] in (study, profile), f"{name_of(page)}:{block.line}: {min(study, profile, key=len)}"


def shell_lines(block: Block) -> Iterator[list[str]]:
    """The words of each command of the suite in a block, as far as a pipe or a comment."""
    text = block.commands().replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quote that ends on another line
            continue
        while "curricula" in words:
            rest = words[words.index("curricula") + 1 :]
            end = next((at for at, word in enumerate(rest) if set(word) <= set("|;&<>")), len(rest))
            yield rest[:end]
            words = rest[end:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_understood(page, capsys):
    parser = build_parser(WITH_OWN_PARSERS)
    for block in blocks(page):
        if block.language not in SHELLS:
            continue
        for words in shell_lines(block):
            if not any(word.startswith("$") for word in words):  # a variable may hold options
                try:
                    parser.parse_args(words)
                except SystemExit as stop:
                    said = capsys.readouterr().err
                    assert stop.code == 0, f"{name_of(page)}:{block.line}: curricula {shlex.join(words)}: {said}"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkout without runs, and programs of this environment."""
    folder = tmp_path_factory.mktemp("docs")
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".venv", ".git") and not path.name.startswith(".") and path.name != "site":
            (folder / path.name).symlink_to(path)
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    call = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m curricula.jobs.cli.main "$@"\n'
    for name, text in (("curricula", call), ("python", f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return folder


@pytest.mark.slow
def test_commands_do_what_they_say(place):
    """All pages in one test, since they share the tutorial's run."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("CURRICULA_", "SLURM"))}
    home = {"PATH": f"{place}/.venv/bin:{os.environ['PATH']}", "HOME": str(place), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    wrong = []
    for block in ALL:
        named = re.match(r"# (\S+\.yaml)\b", block.text)
        if block.language == "yaml" and named and block.page.parent.name == "tutorial":
            (place / named[1]).write_text(block.text)
        if block.needs or block.language not in RUN_HERE:
            continue
        words = ["python", "-"] if block.language == "python" else ["bash", "-euo", "pipefail"]
        text = block.text if block.language == "python" else block.commands()
        ran = subprocess.run(words, input=text, cwd=place, env={**keep, **home}, capture_output=True, text=True, timeout=500)
        if ran.returncode:
            wrong.append(f"{name_of(block.page)}:{block.line}: {ran.stderr[-1500:] or ran.stdout[-1500:]}")
        if (place / "runs/first/report/index.html").exists() and not (place / "runs/demo").exists():
            shutil.copytree(place / "runs/first", place / "runs/demo")
    assert not wrong, "\n\n".join(wrong)


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site/index.html").is_file() and (tmp_path / "site/reference/study.html").is_file()


def test_a_mistake_in_a_document_is_found():
    """The checks above find what they look for."""
    assert list(unknown_keys({"curriculum": {"strats": [0]}}, types.type_info(Study))) == ["strats"]
    assert list(unknown_keys({"stages": {"all": {"hours": 2}}}, types.type_info(Profile))) == []
    block = Block(ROOT / "README.md", 1, "console", "$ curricula plan \\\n    x.yaml\nanswer\n# curricula status | less", "")
    assert list(shell_lines(block)) == [["plan", "x.yaml"], ["status"]]
    assert slug(" The path of a sample, [of a prompt](#x) ") == "the-path-of-a-sample-of-a-prompt"
