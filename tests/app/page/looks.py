"""What can be asked of a page as it is drawn: contrast, width, focus, names."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, Literal

from playwright.async_api import Page, ViewportSize

LOOKS = Path(__file__).with_suffix(".js").read_text().partition("\n")[2].rstrip()
SETTLED = """async () => {
  await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
  await Promise.allSettled(document.getAnimations().map((animation) => animation.finished));
}"""
"""Waits until the page is drawn and its transitions have ended."""

CONTROLS = {
    "button",
    "checkbox",
    "combobox",
    "link",
    "listbox",
    "menuitem",
    "radio",
    "searchbox",
    "slider",
    "spinbutton",
    "switch",
    "tab",
    "textbox",
}
"""Roles of what a person uses, so each needs a name."""

DESKTOP = ViewportSize(width=1440, height=900)
PHONE = ViewportSize(width=360, height=740)


async def faults(page: Page) -> list[str]:
    """Look at the page light and dark, on a desktop and on a phone.

    Return texts with too little contrast, controls without a name, and what scrolls sideways.
    """
    found = []
    themes: tuple[Literal["dark", "light"], ...] = ("dark", "light")
    for theme, size in product(themes, (PHONE, DESKTOP)):
        await page.emulate_media(color_scheme=theme)
        await page.set_viewport_size(size)
        await page.evaluate(SETTLED)
        here = [*await wider_than_window(page), *await low_contrast(page), *await nameless(page)]
        found += [f"{theme}, {size['width']} pixels: {fault}" for fault in here]
    return found


async def look(page: Page, question: str, argument: object = None) -> Any:
    return await page.evaluate(f"(argument) => ({LOOKS}).{question}(argument)", argument)


async def low_contrast(page: Page, least: float = 4.5) -> list[str]:
    """Return the visible texts whose contrast with what is behind them is too low."""
    found: list[str] = await look(page, "lowContrast", least)
    return found


async def wider_than_window(page: Page) -> list[str]:
    """Return what makes the page scroll sideways."""
    found: list[str] = await look(page, "widerThanWindow")
    return found


async def focus(page: Page) -> tuple[str, str, bool]:
    """Return the role and name of what has the focus, and whether one sees that it has it."""
    found = await look(page, "focus")
    return found.get("role", ""), found["name"], found["visible"]


async def nameless(page: Page) -> list[str]:
    """Return the controls without a name in the accessibility tree, each with its HTML."""
    session = await page.context.new_cdp_session(page)
    tree: Any = await session.send("Accessibility.getFullAXTree")
    found = []
    for node in tree["nodes"]:
        role = node.get("role", {}).get("value")
        if role not in CONTROLS or node.get("ignored") or node.get("name", {}).get("value"):
            continue
        element: Any = await session.send(
            "DOM.resolveNode", {"backendNodeId": node["backendDOMNodeId"]}
        )
        html: Any = await session.send(
            "Runtime.callFunctionOn",
            {
                "objectId": element["object"]["objectId"],
                "functionDeclaration": "function () { return this.outerHTML.slice(0, 200) }",
            },
        )
        found.append(f"{role}: {html['result']['value']}")
    await session.detach()
    return found
