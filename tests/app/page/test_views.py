"""What the page shows and how it looks, in Chromium."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from .looks import faults, focus

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = {"Content-Type": "text/plain"}
VIEWS = ("#/p/digits", "#/p/digits/try", "#/p/boxes/try", "#/p/sums/try", "#/p/fails/requests")


@pytest.fixture(scope="module", autouse=True)
def traffic(server: httpx.Client, digit: bytes) -> str:
    """Send a few requests, so that there is something to see. Return the id of one that failed."""
    for _ in range(3):
        assert server.put("/predict/digits", content=digit).status_code == 200
    failed = server.post("/predict/fails", content="x", headers=TEXT)
    assert failed.status_code == 500
    return failed.headers["X-Request-Id"]


async def test_each_view_is_readable_and_fits(visit: Callable[..., Any], traffic: str) -> None:
    async with visit() as visited:
        for view in (*VIEWS, f"#/requests/{traffic}"):
            await visited.open(view)
            assert await faults(visited.page) == [], view


async def test_the_first_view_says_what_is_served(visit: Callable[..., Any]) -> None:
    async with visit() as visited:
        await visited.open()
        page: Page = visited.page
        await expect(page.get_by_text("Ready, 7 pipelines")).to_be_visible()
        pipelines = page.get_by_role("navigation", name="Pipelines").get_by_role("link")
        await expect(pipelines).to_have_count(7)
        await pipelines.filter(has_text="boxes").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("boxes")
        graph = page.get_by_role("region", name="Graph")
        for node in ("decode, DecodeMat", "mask, ", "find, ", "join, Identity"):
            await expect(graph.get_by_role("button", name=re.compile(f"^{node}"))).to_be_visible()
        await expect(page.get_by_text("Finds things in an image.")).to_be_visible()


async def test_the_state_is_whole_where_there_is_little_room(visit: Callable[..., Any]) -> None:
    async with visit() as visited:
        await visited.page.set_viewport_size({"width": 720, "height": 450})  # 1440 pixels at 200 %
        await visited.open()
        state = visited.page.get_by_text(re.compile("^Ready, "))
        assert await state.evaluate("text => text.scrollWidth <= text.clientWidth")


async def test_it_says_how_a_pipeline_feels(
    visit: Callable[..., Any], server: httpx.Client
) -> None:
    async with visit() as visited, httpx.AsyncClient(base_url=server.base_url) as client:
        await visited.open("#/p/full")
        page: Page = visited.page
        entry = page.get_by_role("navigation", name="Pipelines").get_by_role("link", name="full")
        main = page.get_by_role("main")
        await expect(entry).to_contain_text("Idle")
        await expect(main).to_contain_text("No traffic yet")

        async def insist() -> None:
            while True:
                await client.post("/predict/full", content="20", headers=TEXT, timeout=60)

        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(insist()) for _ in range(3)]
            await expect(entry).to_contain_text("Refusing")
            await expect(main.locator(".feeling")).to_contain_text(re.compile(r"[Rr]efus.*/s"))
            for caller in callers:
                caller.cancel()
        await expect(entry).to_contain_text("Idle")


async def test_values_change_and_nothing_moves(
    visit: Callable[..., Any], server: httpx.Client, digit: bytes
) -> None:
    async with visit() as visited:
        await visited.open("#/p/digits")
        page: Page = visited.page
        node = page.get_by_role("button", name=re.compile("^digits, "))
        await expect(page.locator("canvas").first).to_be_visible()
        await expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
        await node.click()
        details = page.get_by_role("region", name="Node digits")
        items = details.locator("div", has=page.get_by_text("Since the start")).locator("dd").first
        (status,) = [
            pipeline
            for pipeline in server.get("/status").json()["pipelines"]
            if pipeline["name"] == "digits"
        ]
        sent = status["nodes"][0]["items"]
        await expect(items).to_have_text(str(sent))
        before = await geometry(page)
        server.put("/predict/digits", content=digit)
        await expect(items).to_have_text(str(sent + 1))
        assert await geometry(page) == before


async def geometry(page: Page) -> Any:
    """Return where everything with a box of its own is."""
    return await page.evaluate(
        """() => [...document.querySelectorAll("header, nav, a, button, section, h1, canvas")]
          .map((element) => {
            const { x, y, width, height } = element.getBoundingClientRect();
            return [element.localName, element.className, x, y, width, height].join(" ");
          })"""
    )


async def test_the_keyboard_is_enough(visit: Callable[..., Any]) -> None:
    """Tab reaches each control and shows where it is. Enter opens a node, Escape closes it."""
    async with visit() as visited:
        await visited.open("#/p/words")
        page: Page = visited.page
        await expect(page.get_by_role("button", name=re.compile("^words, "))).to_be_visible()
        reached: list[str] = []
        for _ in range(60):
            await page.keyboard.press("Tab")
            _, name, visible = await focus(page)
            if not name or name in reached:
                break
            assert visible, f"one does not see that {name!r} has the focus"
            if not reached:
                assert name == "Skip to the pipeline"
            reached.append(name)
            if name.startswith("words, "):
                await page.keyboard.press("Enter")
                details = page.get_by_role("region", name="Node words")
                await expect(details).to_be_visible()
                await page.keyboard.press("Escape")
                await expect(details).to_be_hidden()
                assert (await focus(page))[1] == name
        for name in ("API docs", "words", "Try it"):
            assert any(name in one for one in reached), reached
        await page.get_by_role("button", name="Skip to the pipeline").press("Enter")
        await expect(page.get_by_role("main")).to_be_focused()
