"""One Chromium, and one `penstock serve` with small pipelines, for all tests of the page."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from ..conftest import DIGITS, spawning
from .looks import DESKTOP

sys.path.append(str(Path(__file__).parents[3] / "scripts" / "browser"))

import chromium

PIPELINES = Path(__file__).parent / "pipelines"
KEY = "key-of-this-test"
PATIENCE_MS = 15_000
"""How long a condition may take. The machine may stall, and a test ends as soon as it holds."""

expect.set_options(timeout=PATIENCE_MS)

REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP: ${event.violatedDirective} blocked ${event.blockedURI}`));
"""


@dataclass
class Visit:
    """A page in a browser of its own, and what went wrong on it."""

    page: Page
    url: str
    """Where the server is, without a slash at the end."""
    problems: list[str] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    """Statuses of answers that the test provokes; 0: none came."""

    async def open(self, view: str = "") -> None:
        """Go to a view, as `#/p/digits`, and wait until it shows what the server says."""
        await self.page.goto(f"{self.url}/{view}")
        await expect(self.page.get_by_text(re.compile("^Ready, "))).to_be_visible()

    def watch(self) -> None:
        """Note errors, and requests to other servers."""
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        self.page.on("request", self._on_request)
        self.page.on("response", self._on_response)
        self.page.on("requestfailed", self._on_failure)

    def _on_console(self, message: Any) -> None:
        # Chromium logs each answer of an error's status; `_on_response` judges those.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.problems.append(f"console: {message.text}")

    def _on_request(self, request: Any) -> None:
        if not request.url.startswith((f"{self.url}/", "data:", "blob:")):
            self.problems.append(f"a request left the server: {request.url}")

    def _on_response(self, response: Any) -> None:
        if response.status >= 400 and response.status not in self.expected:
            self.problems.append(f"{response.url} was answered with {response.status}")

    def _on_failure(self, request: Any) -> None:
        # What the page itself has given up is aborted: events, when another view is opened.
        if request.failure != "net::ERR_ABORTED" and 0 not in self.expected:
            self.problems.append(f"{request.url} failed: {request.failure}")


Visiting = Callable[..., AbstractAsyncContextManager[Visit]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    try:
        path = chromium.find()
    except RuntimeError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    async with async_playwright() as driver:
        running = await driver.chromium.launch(executable_path=path, args=chromium.OPTIONS)
        yield running
        await running.close()


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pipelines of this folder, and the classifier of examples/digits."""
    folder = tmp_path_factory.mktemp("page") / "pipelines"
    shutil.copytree(PIPELINES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("digits.toml", "digits.onnx", "labels.txt"):
        shutil.copy(DIGITS.parent / name, folder)
    return folder


@pytest.fixture(scope="session")
def server(browser: Browser, pipelines: Path) -> Iterator[httpx.Client]:
    """Serve them. `browser` comes first: without Chromium nothing starts."""
    with spawning() as spawn:
        process = spawn("serve", pipelines, "--port", 0)
        process.wait_for("ready after")
        with process.listening() as client:
            yield client


@pytest.fixture(scope="session")
def guarded(browser: Browser) -> Iterator[httpx.Client]:
    """Serve `words` with an API key, below the root path /models."""
    with spawning() as spawn:
        options = ("--port", 0, "--root-path", "/models")
        process = spawn("serve", PIPELINES / "words.toml", *options, PENSTOCK_API_KEY=KEY)
        process.wait_for("ready after")
        with process.listening() as client:
            yield client


@pytest.fixture(scope="session")
def visiting(browser: Browser) -> Visiting:
    """Return a context manager that yields a `Visit` of a server. At its end nothing may be wrong.

    Options are those of Playwright's `new_context`.
    """

    @asynccontextmanager
    async def visit(url: str, *expected: int, **options: Any) -> AsyncIterator[Visit]:
        context: BrowserContext = await browser.new_context(
            viewport=DESKTOP, reduced_motion="reduce", **options
        )
        context.set_default_timeout(PATIENCE_MS)
        await context.add_init_script(REPORT_VIOLATIONS)
        made = Visit(await context.new_page(), url.rstrip("/"), expected=set(expected))
        made.watch()
        try:
            yield made
        finally:
            await context.close()
        assert made.problems == []

    return visit


@pytest.fixture
def visit(visiting: Visiting, server: httpx.Client) -> Callable[..., Any]:
    """Return `visiting` of the server."""

    def of_server(*expected: int, **options: Any) -> AbstractAsyncContextManager[Visit]:
        return visiting(str(server.base_url), *expected, **options)

    return of_server
