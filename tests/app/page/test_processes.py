"""The processes of a server that has several, on the page, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.async_api import Browser, Page, expect

from ..conftest import spawning
from .conftest import PIPELINES, Visiting
from .looks import faults

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def several(browser: Browser) -> Iterator[httpx.Client]:
    with spawning() as spawn:
        process = spawn("serve", PIPELINES / "boxes.toml", "--port", 0, "--processes", 2)
        process.wait_for("all 4 processes are ready")
        with process.listening() as client:
            yield client
        process.process.terminate()
        assert process.end() == 0


async def test_each_process_is_listed(visiting: Visiting, several: httpx.Client) -> None:
    async with visiting(str(several.base_url)) as visited:
        await visited.open()
        page: Page = visited.page
        await page.get_by_role("button", name="4 processes").click()
        dialog = page.get_by_role("dialog", name="Processes")
        rows = dialog.get_by_role("row")
        await expect(rows).to_have_count(5)
        for row, name in enumerate(("parent", "models", "front 1", "front 2"), 1):
            await expect(rows.nth(row)).to_have_text(re.compile(rf"^{name} ?up.* [kMG]B0\d+$"))
        assert await faults(page) == []
        await page.keyboard.press("Escape")
        await expect(dialog).to_be_hidden()


async def test_a_node_shows_what_front_processes_did(
    visiting: Visiting, several: httpx.Client, digit: bytes
) -> None:
    several.post("/predict/boxes", content=digit).raise_for_status()
    async with visiting(str(several.base_url)) as visited:
        await visited.open("#/p/boxes")
        page: Page = visited.page
        await page.get_by_role("button", name=re.compile("^decode, ")).click()
        details = page.get_by_role("region", name="Node decode")
        items = details.locator("div", has=page.get_by_text("Since the start")).locator("dd").first
        await expect(items).to_have_text("1")
        instances = details.get_by_role("row")
        for name in ("boxes/decode#0", "front 1 boxes/decode#0", "front 2 boxes/decode#0"):
            await expect(instances.filter(has_text=re.compile(f"^{name}"))).to_have_count(1)
