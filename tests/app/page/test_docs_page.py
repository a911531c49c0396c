"""/docs in Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.async_api import Locator, Page, expect

from .conftest import KEY, Visiting
from .looks import faults, low_contrast

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def open_operation(page: Page, path: str) -> Locator:
    """Open the operation POST `path` and return it."""
    operation = page.locator(".opblock-post").filter(has_text=path)
    await operation.get_by_role("button").first.click()
    await expect(operation.get_by_role("button", name="Try it out")).to_be_visible()
    return operation


async def test_it_is_readable_and_errors_open_when_asked(visit: Callable[..., Any]) -> None:
    async with visit() as visited:
        await visited.page.goto(f"{visited.url}/docs")
        operation = await open_operation(visited.page, "/predict/words")
        errors = operation.get_by_role("button", name=re.compile(r"\d+ error responses"))
        full = operation.get_by_role("cell", name="503", exact=True)
        await expect(operation.get_by_role("cell", name="200", exact=True)).to_be_visible()
        await expect(full).to_be_hidden()
        assert await faults(visited.page) == []
        await errors.click()
        await expect(full).to_be_visible()
        assert await low_contrast(visited.page) == []
        await errors.click()
        await expect(full).to_be_hidden()


async def test_a_request_is_tried_with_the_key(visiting: Visiting, guarded: httpx.Client) -> None:
    url = f"{str(guarded.base_url).rstrip('/')}/models"
    async with visiting(url, 401) as visited:
        page = visited.page
        await page.goto(f"{url}/docs")
        for key in ("wrong", KEY):
            await page.get_by_label("API key").fill(key)
            await page.keyboard.press("Enter")
            if key == "wrong":
                await expect(page.get_by_text("did not accept that key")).to_be_visible()
        operation = await open_operation(page, "/predict/words")
        await operation.get_by_role("button", name="Try it out").click()
        async with page.expect_request("**/models/predict/words") as sent:
            await operation.get_by_role("button", name="Execute").click()
        headers = await (await sent.value).all_headers()
        assert headers["authorization"] == f"Bearer {KEY}"
        await expect(operation.locator(".live-responses-table")).to_contain_text("200")
