"""The examples of the documentation, for tests that run them."""

from __future__ import annotations

import re

from paths import ROOT


def example(document: str, heading: str, language: str, number: int = 0) -> str:
    """The `number`-th block of `language` in the section that begins with `heading`."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    level = heading.split(" ")[0]
    section = re.split(rf"\n#{{1,{len(level)}}} ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1)[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[number]
