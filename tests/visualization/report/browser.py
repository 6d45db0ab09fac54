"""Headless Chromium, where it is installed: what a page becomes once its script has run."""

from __future__ import annotations

import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Elements that have no end.
_VOID = {"meta", "input", "img", "br", "hr", "link", "area", "base", "col", "wbr"}


class Page(HTMLParser):
    """Elements of a page as (tag, attributes, text directly in it); ``faults`` of their nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.faults: list[str] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        self.faults += [f"{self.elements[i][0]} is not closed" for i in self._open]

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs), []))
        if len(dict(attrs)) < len(attrs):
            self.faults.append(f"an attribute of {tag} twice")
        if tag not in _VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        if self._open and self.elements[self._open[-1]][0] == tag:
            self._open.pop()
        else:
            self.faults.append(f"</{tag}> at line {self.getpos()[0]} closes nothing")

    def handle_data(self, data: str) -> None:
        if self._open:
            self.elements[self._open[-1]][2].append(data)

    def find(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """Return the attributes of the elements of a name, with their text under "text"."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            {**own, "text": "".join(text).strip()}
            for name, own, text in self.elements
            if name == tag and wanted.items() <= own.items()
        ]


def chromium() -> str:
    """Return the browser's path; the test is skipped without one."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")


def render(html: Path, folder: Path, address: str = "") -> Page:
    """Open a page, let its script run, and return what has become of it.

    Args:
        html: the page's file.
        folder: for the browser's own files.
        address: what comes after the file's, from "#" on.
    """
    command = [chromium(), "--headless", "--disable-gpu", f"--user-data-dir={folder}"]
    command += ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []
    command += ["--window-size=1400,900", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [*command, html.resolve().as_uri() + address], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return Page(done.stdout)
