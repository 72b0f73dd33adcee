"""The examples of the documentation, for tests that run them."""

from __future__ import annotations

import re

from paths import ROOT


def example(document: str, heading: str, language: str, number: int = 0) -> str:
    """The `number`-th block of `language` in the section that begins with `heading`."""
    lines = (ROOT / "docs" / document).read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1].split("\n")
    level, blocks, inside = len(heading.split(" ")[0]), [], None
    for line in lines:
        if inside is None and re.match(rf"#{{1,{level}}} ", line):
            break
        if line.startswith("```"):
            if inside is not None and inside[0] == language:
                blocks.append("\n".join(inside[1:]) + "\n")
            inside = [line[3:].strip()] if inside is None else None
        elif inside is not None:
            inside.append(line)
    return blocks[number]
