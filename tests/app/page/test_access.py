"""The page with an API key, below a root path, and while the server is away; in Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Mount

from penstock import create_app
from penstock.app.settings import Settings

from ...ports import free_port
from ..conftest import spawning
from .conftest import KEY, PIPELINES, Visiting

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORDS = PIPELINES / "words.toml"
REFUSE_STORAGE = """
for (const name of ["localStorage", "sessionStorage"]) {
  const get = () => { throw new DOMException("blocked", "SecurityError"); };
  Object.defineProperty(window, name, { get });
}
"""
PAIR = """
[pipeline.inputs]
title = { kind = "text" }
size = { kind = "integer" }
[pair]
backend = "Identity"
"""


async def enter(page: Page, key: str) -> None:
    """Answer the page's question for the key."""
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("API key").fill(key)
    await page.keyboard.press("Enter")


async def test_the_page_asks_for_the_key_and_uses_it_below_a_root_path(
    visiting: Visiting, guarded: httpx.Client
) -> None:
    url = f"{str(guarded.base_url).rstrip('/')}/models"
    async with visiting(url) as visited:
        page = visited.page
        await page.goto(f"{url}/")
        dialog = page.get_by_role("dialog", name=re.compile("API key"))
        await expect(dialog).to_be_visible()
        visited.expected.add(401)  # from here on: no call is made before the key is asked for
        await enter(page, "wrong")
        await expect(dialog.get_by_role("alert")).to_contain_text("did not accept")
        await enter(page, KEY)
        await expect(dialog).to_be_hidden()
        await expect(page.get_by_text("Ready, 1 pipeline")).to_be_visible()
        await page.goto(f"{url}/#/p/words/try")
        await page.get_by_role("button", name="Send", exact=True).click()
        await expect(page.get_by_role("region", name="Answer")).to_contain_text("200 OK")
        curl = page.get_by_role("tabpanel", name="curl")
        await expect(curl).to_contain_text("Authorization: Bearer $PENSTOCK_API_KEY")
        assert KEY not in await page.content()
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", await curl.inner_text()],
            env=os.environ | {"PENSTOCK_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert '"words":' in done.stdout, done.stderr


async def test_without_the_key_the_page_says_so(visiting: Visiting, guarded: httpx.Client) -> None:
    async with visiting(str(guarded.base_url)) as visited:
        page = visited.page
        await page.goto(f"{visited.url}/")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_text("API key needed")).to_be_visible()
        await page.get_by_role("button", name="Enter the key").click()
        await enter(page, KEY)
        await expect(page.get_by_text("Ready, 1 pipeline")).to_be_visible()


async def test_a_browser_that_keeps_nothing_can_use_the_pages(
    visiting: Visiting, guarded: httpx.Client
) -> None:
    async with visiting(str(guarded.base_url)) as visited:
        page = visited.page
        await page.add_init_script(REFUSE_STORAGE)
        await page.goto(f"{visited.url}/")
        await enter(page, KEY)
        await expect(page.get_by_text("Ready, 1 pipeline")).to_be_visible()
        await page.get_by_role("button", name="Theme: auto").click()
        await expect(page.get_by_role("button", name="Theme: light")).to_be_visible()
        await page.goto(f"{visited.url}/docs")
        await page.get_by_label("API key").fill(KEY)
        await page.keyboard.press("Enter")
        await expect(page.locator(".opblock").first).to_be_visible()


async def test_the_page_works_in_another_application(visiting: Visiting, running: Any) -> None:
    penstock = create_app(WORDS)
    host = Starlette(routes=[Mount("/inside", penstock)], lifespan=penstock.router.lifespan_context)
    with running(host) as client:
        async with visiting(f"{str(client.base_url).rstrip('/')}/inside") as visited:
            await visited.open("#/p/words/try")
            await visited.page.get_by_role("button", name="Send", exact=True).click()
            answer = visited.page.get_by_role("region", name="Answer")
            await expect(answer).to_contain_text("200 OK")


async def test_one_more_than_may_watch_sees_the_page_without_events(
    visiting: Visiting, running: Any, tmp_path: Path
) -> None:
    shutil.copy(WORDS, tmp_path)
    shutil.copy(WORDS.with_name("tools.py"), tmp_path)
    (tmp_path / "broken.toml").write_text("[broken]\nbackend = 'Nothing'\n")
    (tmp_path / "pair.toml").write_text(PAIR)
    app = create_app(tmp_path, settings=Settings(max_watchers=1))
    events = {"Accept": "text/event-stream"}
    with running(app) as client, client.stream("GET", "/status", headers=events):
        async with visiting(str(client.base_url), 503) as visited:
            await visited.open("#/p/words/try")
            page = visited.page
            await expect(page.get_by_text("Ready, 3 pipelines, 1 down")).to_be_visible()
            await page.get_by_role("button", name="Send", exact=True).click()
            answer = page.get_by_role("region", name="Answer")
            await expect(answer).to_contain_text("200 OK")
            await page.goto(f"{visited.url}/#/p/broken")
            await expect(page.get_by_text("could not be loaded")).to_be_visible()
            await expect(page.get_by_text("No traffic yet")).to_be_hidden()
            await page.goto(f"{visited.url}/#/p/pair")
            command = await page.get_by_role("main").locator("code").inner_text()
            output = await asyncio.to_thread(subprocess.check_output, ["sh", "-c", command])
            assert json.loads(output)["result"] == ["Hello from Penstock.", 1]


async def test_the_page_says_what_it_may_not_read(visiting: Visiting, running: Any) -> None:
    settings = Settings(restricted_api=SecretStr("statistics:off"))
    with running(create_app(WORDS, settings=settings)) as client:
        async with visiting(str(client.base_url), 403) as visited:
            await visited.page.goto(f"{visited.url}/")
            await expect(visited.page.get_by_text("No access to /status")).to_be_visible()
            await expect(visited.page.get_by_text("the operator has turned it off")).to_be_visible()
            await expect(visited.page).to_have_title("Penstock")


async def test_the_page_comes_back_with_the_server(visiting: Visiting) -> None:
    port = free_port()
    with spawning() as spawn:

        def serve() -> Any:
            process = spawn("serve", WORDS, "--port", port)
            process.wait_for("ready after")
            return process

        process = serve()
        async with visiting(f"http://127.0.0.1:{port}", 0) as visited:
            await visited.open()
            process.process.send_signal(signal.SIGTERM)
            await expect(visited.page.get_by_text("Disconnected")).to_be_visible()
            assert process.end() == 0
            serve()
            await expect(visited.page.get_by_text("Ready, 1 pipeline")).to_be_visible()
            await expect(visited.page.get_by_text("The server was restarted")).to_be_visible()
