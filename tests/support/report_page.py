"""The report's page as a reader of HTML meets it."""

from __future__ import annotations

import csv
import html
import html.parser
import re
from pathlib import Path

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Checks that elements nest and that no two have one id, and collects ids, links, images, tags and text."""

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.html = text
        self.feed(text)
        assert self.stack == [] and len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.add(tag)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        self.images += [named] if tag == "img" else []
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data):
        if self.stack and self.stack[-1] in ("script", "style"):
            return
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def table(page: str, name: str) -> list[dict[str, str]]:
    """The rows of a table of the page by what heads their cells, each cell as its text."""
    text = page.split(f'<p class="caption" id="{name}">')[1].split("</table>")[0]
    head, *rows = (
        [
            html.unescape(" ".join(re.sub("<[^>]*>", " ", cell).split()))
            for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr>.*?</tr>", text, re.DOTALL)
    )
    return [dict(zip(head, row, strict=True)) for row in rows if len(row) == len(head)]


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that the report wrote beside its page."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
