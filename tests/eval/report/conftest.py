"""One Chromium for all tests of a session; on Debian root installs it, as the tests of the Slurm lab install Slurm."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync"]
INSTALL = ["apt-get", "-o", "DPkg::Lock::Timeout=600", "install", "--yes", "--no-install-recommends", "chromium"]


@pytest.fixture(scope="module", autouse=True)
def figures_as_svg(svg_alone: None) -> None:
    """For all modules of this folder."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one module: while Playwright is open, its event loop runs in this thread, which other modules must not meet."""
    program = _chromium()
    if not program:
        pytest.skip("chromium is not installed, and only root can install it, on Debian")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=OPTIONS, timeout=300_000)
        yield opened
        opened.close()


def _chromium() -> str | None:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found or os.geteuid() != 0 or not shutil.which("apt-get"):
        return found
    with open("/tmp/curricula-apt.lock", "a") as file:  # workers of one session ask at once, and so may the Slurm lab
        fcntl.flock(file, fcntl.LOCK_EX)
        if not shutil.which("chromium"):
            quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "timeout": 900}
            subprocess.run(["apt-get", "update"], **quiet)
            subprocess.run(INSTALL, **quiet)
    return shutil.which("chromium")


@dataclass
class Watched:
    """A page, and what it did that a report must not do."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """Console errors, breaches of its policy among them, and uncaught exceptions."""
    left: list[str] = field(default_factory=list)
    """Requests to anything but the file itself."""

    def open(self, address: str | Path) -> Page:
        self.page.goto(address.as_uri() if isinstance(address, Path) else address)
        return self.page

    @property
    def is_clean(self) -> bool:
        return not self.errors and not self.left


@pytest.fixture
def watched(browser, request) -> Iterator[Watched]:
    """A new page; `@pytest.mark.parametrize("watched", [{...}], indirect=True)` gives it options, such as its width."""
    context = browser.new_context(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    context.set_default_timeout(120_000)
    found = Watched(context.new_page())
    found.page.on("console", lambda said: found.errors.append(said.text) if said.type in ("error", "warning") else None)
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    allowed = ("file:", "data:", "blob:", "http://127.0.0.1:")
    found.page.on("request", lambda ask: None if ask.url.startswith(allowed) else found.left.append(ask.url))
    yield found
    context.close()
