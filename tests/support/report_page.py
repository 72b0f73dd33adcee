"""The report's page as a reader of HTML meets it."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Checks that elements nest, and collects ids, links, images, scripts and text."""

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)
        assert self.stack == []

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
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


needs_browser = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")


def shown_width(page: str, folder: Path, width: int) -> str:
    """How wide a browser lays the page out in a frame of this width: "390 of 390"."""
    # The page has no script, so this copy measures itself; in a frame, since a headless window is at least 500 px wide.
    probe = (
        "<script>parent.postMessage(document.documentElement.scrollWidth + ' of ' + innerWidth, '*')</script></body>"
    )
    (folder / "page.html").write_text(page.replace("</body>", probe))
    listen = "<script>onmessage = event => document.title = event.data</script>"
    frame = f'{listen}<iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe>'
    (folder / "frame.html").write_text(f"<!DOCTYPE html><title>unseen</title>{frame}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
    options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1600,1000", "--dump-dom"]
    command = ["chromium", *options, (folder / "frame.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search("<title>(.*?)</title>", shown)
    return found[1] if found else ""
