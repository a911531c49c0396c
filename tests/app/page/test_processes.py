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
        process = spawn("serve", PIPELINES / "words.toml", "--port", 0, "--processes", 2)
        process.wait_for("all 4 processes are ready")
        with process.listening() as client:
            yield client


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
