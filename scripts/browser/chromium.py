"""Start the Chromium of the system, for the tests of the page, its pictures and its figures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

COMMANDS = ("chromium", "chromium-browser", "google-chrome")
"""What Debian, Ubuntu and Google call it."""

OPTIONS = (
    "--no-sandbox",  # it needs namespaces, which containers lack
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""A browser that asks nobody but the server under test, and runs as root in a container."""


def find() -> str:
    """Return the path of Chromium. Raises RuntimeError with what to install."""
    for command in COMMANDS:
        if path := shutil.which(command):
            return path
    raise RuntimeError(f"none of {', '.join(COMMANDS)} is installed: apt install chromium")


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run Chromium without a window, with an empty profile of its own."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find(), args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()
