"""The list of requests and the view of one, in Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.async_api import Page, Route, expect

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = {"Content-Type": "text/plain"}
RUN_MS = 400
REFRESH_MS = 2000
"""As in why.js."""


def send(server: httpx.Client, pipeline: str, text: str, request_id: str) -> httpx.Response:
    headers = {**TEXT, "X-Request-Id": request_id}
    return server.post(f"/predict/{pipeline}", content=text, headers=headers)


@pytest.fixture(scope="module")
def waited(server: httpx.Client) -> Any:
    """Send three requests to a node with two instances until one waits. Return its explanation."""
    with ThreadPoolExecutor() as threads:
        for attempt in range(20):  # where the machine stalls, they come one by one
            ids = [f"{attempt}-{number}" for number in range(3)]
            list(threads.map(lambda name: send(server, "waits", str(RUN_MS), name), ids))
            for name in ids:
                explained = server.get(f"/requests/{name}").json()
                if explained["nodes"][0]["waited_ms"] > explained["nodes"][0]["ran_ms"] / 4:
                    return explained
    pytest.fail("none of 60 requests waited")


async def test_it_says_why_a_request_was_slow(visit: Callable[..., Any], waited: Any) -> None:
    name = waited["id"]
    async with visit() as visited:
        await visited.open(f"#/requests/{name}")
        page: Page = visited.page
        request = page.get_by_role("article", name=f"Request {name}")
        await expect(request.get_by_role("heading", level=1)).to_have_text(waited["summary"][0])
        row = request.get_by_role("button", name=re.compile("^wait: waited .* ms, then ran"))
        await expect(row).to_have_attribute("aria-expanded", "true")  # the longest is open
        details = request.get_by_role("definition")
        await expect(details.nth(1)).to_contain_text(waited["nodes"][0]["waits"][0]["words"])
        await expect(details.last).to_contain_text("waits/wait#")
        await row.press("Enter")
        await expect(details).to_have_count(0)
        await expect(request).to_contain_text(f"penstock why --url {visited.url} {name}")
        await expect(request.get_by_role("button", name="(answer): ")).to_be_visible()


async def test_the_command_runs_nothing_of_a_client(
    visit: Callable[..., Any], server: httpx.Client
) -> None:
    """Clients choose the ids of their requests, and operators copy the command into a shell."""
    async with visit(404) as visited:
        page: Page = visited.page
        for name, command in (("$(id)", "'$(id)'"), ("-;id", "-- '-;id'"), ("it's", "'it'\\''s'")):
            send(server, "waits", "1", name)
            await visited.open(f"#/requests/{quote(name, safe='')}")
            request = page.get_by_role("article", name=f"Request {name}")
            await expect(request.locator("footer code")).to_have_text(
                f"penstock why --url {visited.url} {command}"
            )
        await visited.open("#/requests/%zz")  # typed by hand
        await expect(page.get_by_text("no request '%zz' is remembered")).to_be_visible()


async def test_a_slow_request_of_one_node_is_listed(server: httpx.Client) -> None:
    """It is remembered in a way of its own, because it is the most usual."""
    slow: set[str] = set()
    while not slow:  # until the server knows what is usual
        for milliseconds in (1, 1, 1, 1, 1, RUN_MS):
            send(server, "waits", str(milliseconds), "")
        recent = server.get("/requests?kind=recent&pipeline=waits").json()["requests"]
        slow = {one["id"] for one in recent if one["slow"]}
    listed = server.get("/requests?kind=slow&pipeline=waits").json()["requests"]
    assert slow <= {one["id"] for one in listed}


async def test_the_list_leads_to_each_request(
    visit: Callable[..., Any], server: httpx.Client, waited: Any
) -> None:
    assert send(server, "fails", "x", "broken").status_code == 500
    async with visit(404) as visited:
        await visited.open("#/p/fails/requests")
        page: Page = visited.page
        panel = page.get_by_role("complementary", name="Requests")
        await panel.get_by_role("button", name="Failed", exact=True).click()
        await panel.get_by_role("link", name=re.compile("Failed: .*broken$")).click()
        heading = page.get_by_role("heading", level=1)
        await expect(heading).to_have_text(re.compile("^Failed: node 'fail'"))
        field = panel.get_by_role("textbox", name="Request id")
        await field.fill(waited["id"])
        await field.press("Enter")
        await expect(page.get_by_role("article", name=f"Request {waited['id']}")).to_be_visible()
        await field.fill("nobody")
        await field.press("Enter")
        await expect(page.get_by_text("no request 'nobody' is remembered")).to_be_visible()
        send(server, "words", "x", "nobody")
        await page.get_by_role("button", name="Look again").click()
        await expect(page.get_by_role("article", name="Request nobody")).to_be_visible()


async def test_the_list_stands_still_under_the_pointer(
    visit: Callable[..., Any], server: httpx.Client
) -> None:
    send(server, "words", "x", "earlier")
    async with visit() as visited:
        page: Page = visited.page
        await page.clock.install()
        await visited.open("#/p/words/requests")
        panel = page.get_by_role("complementary", name="Requests")
        await panel.get_by_role("button", name="Recent").click()
        earlier = panel.get_by_role("link", name=re.compile("earlier$"))
        later = panel.get_by_role("link", name=re.compile("later$"))
        await earlier.hover()
        send(server, "words", "x", "later")
        for _ in range(10):  # the clock goes on by itself too: the first answer may be older
            async with page.expect_response("**/requests?*") as response:
                await page.clock.fast_forward(REFRESH_MS)
            if '"later"' in await (await response.value).text():
                break
        else:
            raise AssertionError("the request is not listed")
        await page.evaluate("() => new Promise(requestAnimationFrame)")  # it would be drawn now
        assert await later.count() == 0
        await page.mouse.move(0, 0)
        await page.clock.fast_forward(REFRESH_MS)
        await expect(later.first).to_be_visible()


async def test_a_server_that_tells_nothing_is_not_asked_again(visit: Callable[..., Any]) -> None:
    problem = {"status": 404, "code": "history_off", "detail": "no requests are remembered"}
    asked = 0

    async def answer(route: Route) -> None:
        nonlocal asked
        asked += 1
        body = json.dumps(problem)
        await route.fulfill(status=404, body=body, content_type="application/problem+json")

    async with visit(404) as visited:
        page: Page = visited.page
        await page.clock.install()
        await page.route("**/requests?*", answer)
        await visited.open("#/p/words/requests")
        panel = page.get_by_role("complementary", name="Requests")
        await expect(panel).to_contain_text("no requests are remembered")
        await page.clock.run_for(3 * REFRESH_MS)
        assert asked == 1
        await page.unroute("**/requests?*")
        await panel.get_by_role("button", name="Look again").click()
        await expect(panel).to_contain_text("Of the last")
        await expect(panel).not_to_contain_text("no requests are remembered")
